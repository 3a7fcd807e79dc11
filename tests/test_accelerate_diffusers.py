"""`accelerate` on published networks, small and with random weights: what eager gives, at any shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aigc_engine import accelerate
from tests import diffusers_toys as toys
from tests.diffusers_toys import cast, error

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")
pytest.importorskip("transformers", reason="transformers isn't installed")
pytestmark = toys.MARKS


def image(channels: int, batch: int, size: int) -> Tensor:
    return torch.randn(batch, channels, size, size)


def text(batch: int, width: int = 32) -> Tensor:
    """As many tokens as to be another shape for each batch."""
    return torch.randn(batch, 5 + batch, width)


def tokens(batch: int, size: int) -> Tensor:
    return torch.randint(3, 99, (batch, size))


def mask(batch: int, size: int) -> Tensor:
    """The first row has half the tokens."""
    return (torch.arange(size) < torch.tensor([[size // 2]] + [[size]] * (batch - 1))).long()


# Arguments for a batch B and images of S x S, or as many tokens.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], dict[str, Any]]]] = {
    "unet2d": (toys.unet2d, lambda B, S: {"sample": image(3, B, S), "timestep": 7 + S}),
    "unet_condition": (
        toys.unet_condition,
        lambda B, S: {
            "sample": image(4, B, S),
            "timestep": 7.0,
            "encoder_hidden_states": text(B),
            **toys.residuals(B, S),
        },
    ),
    "unet_xl": (
        toys.unet_xl,
        lambda B, S: {
            "sample": image(4, B, S),
            "timestep": S,
            "encoder_hidden_states": text(B),
            "added_cond_kwargs": {"text_embeds": torch.randn(B, 32), "time_ids": torch.rand(B, 6) * 99},
        },
    ),
    "unet3d": (
        toys.unet3d,
        lambda B, S: {
            "sample": torch.randn(B, 4, 1 + B, S, S),
            "timestep": torch.tensor(S),
            "encoder_hidden_states": text(B),
        },
    ),
    "motion_unet": (
        toys.motion_unet,
        lambda B, S: {  # several videos: with a row of text for each frame, one can't be captured as two
            "sample": torch.randn(1 + B, 4, 4, S, S),
            "timestep": S,
            "encoder_hidden_states": text(1 + B).repeat_interleave(4, 0),
        },
    ),
    "controlnet": (
        toys.controlnet,
        lambda B, S: {
            "sample": image(4, B, S),
            "timestep": torch.tensor(S),
            "encoder_hidden_states": text(B),
            "controlnet_cond": image(3, B, 2 * S),
            "conditioning_scale": 0.5 + B,
        },
    ),
    "unet1d": (
        toys.unet1d,
        lambda B, S: {"sample": torch.randn(B, 6, 2 * S), "timestep": torch.full((B,), S)},
    ),
    "video_unet": (
        toys.video_unet,
        lambda B, S: {
            "sample": torch.randn(B, 2 + B, 8, S, S),
            "timestep": torch.tensor(S * 0.1),
            "encoder_hidden_states": torch.randn(B, 1, 32),
            "added_time_ids": torch.rand(B, 3) * 9,
        },
    ),
    "decoder": (lambda: toys.autoencoder().decoder, lambda B, S: {"sample": image(4, B, S)}),
    "encoder": (lambda: toys.autoencoder().encoder, lambda B, S: {"sample": image(3, B, S)}),
    "tiny_decoder": (lambda: toys.tiny_autoencoder().decoder, lambda B, S: {"x": image(4, B, S)}),
    "dit": (
        toys.dit,
        lambda B, S: {
            "hidden_states": image(4, B, 8),
            "timestep": torch.full((B,), S),
            "class_labels": torch.arange(B),
        },
    ),
    "pixart": (
        toys.pixart,
        lambda B, S: {
            "hidden_states": image(4, B, 8),
            "encoder_hidden_states": text(B, 24),
            "timestep": torch.full((B,), S),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": mask(B, 5 + B),
        },
    ),
    "sd3": (
        toys.sd3,
        lambda B, S: {
            "hidden_states": image(4, B, S),
            "encoder_hidden_states": torch.randn(B, 7, 32),
            "pooled_projections": torch.randn(B, 64),
            "timestep": torch.full((B,), S),
        },
    ),
    "flux": (toys.flux, toys.flux_arguments),
    "clip_text": (toys.clip_text, lambda B, S: {"input_ids": tokens(B, S), "attention_mask": mask(B, S)}),
    "t5_encoder": (toys.t5_encoder, lambda B, S: {"input_ids": tokens(B, S), "attention_mask": mask(B, S)}),
    "vocoder": (toys.vocoder, lambda B, S: {"spectrogram": torch.randn(B, S, 8)}),
}
NATIVE = {
    "unet2d",
    "unet_condition",
    "unet_xl",
    "controlnet",
    "pixart",
    "unet1d",
    "unet3d",
    "motion_unet",
    "video_unet",
    "dit",
    "decoder",
    "encoder",
    "tiny_decoder",
    "sd3",
    "vocoder",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    make, arguments = NETWORKS[name]
    model = make()
    fast = accelerate(model, strict=name in NATIVE)
    with torch.no_grad():
        for batch, size in ((1, 8), (2, 16)):
            given = arguments(batch, size)
            assert error(fast(**given), model(**given)) < 1e-5
    assert len(fast._graphs) == 1


@pytest.mark.parametrize("name", ["dit", "tiny_decoder", "clip_text", "t5_encoder"])
def test_bfloat16_is_as_near_to_the_truth_as_eager(name: str) -> None:
    make, arguments = NETWORKS[name]
    model = make()
    given = arguments(2, 8)
    with torch.no_grad():
        truth = first(copy.deepcopy(model).double()(**cast(given, torch.float64)))
        low = first(copy.deepcopy(model).bfloat16()(**cast(given, torch.bfloat16)))
    got = first(accelerate(model, dtype=torch.bfloat16)(**given))
    assert got.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32
    assert (got.double() - truth).norm() <= 1.5 * (low.double() - truth).norm()


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]
