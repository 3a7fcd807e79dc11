"""`accelerate` on the networks and pipelines of diffusers, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine import accelerate

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def unet2d() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def unet_condition() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def autoencoder() -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple]]] = {
    "unet2d": (unet2d, lambda B, S: (torch.randn(B, 3, S, S), 7 + S)),
    "unet_condition": (
        unet_condition,
        lambda B, S: (torch.randn(B, 4, S, S), 7.0, torch.randn(B, 5 + B, 32)),
    ),
    "decoder": (lambda: autoencoder().decoder, lambda B, S: (torch.randn(B, 4, S, S),)),
    "encoder": (lambda: autoencoder().encoder, lambda B, S: (torch.randn(B, 3, S, S),)),
    "dit": (dit, lambda B, S: (torch.randn(B, 4, 8, 8), torch.full((B,), S), torch.arange(B))),
    "sd3": (
        sd3,
        lambda B, S: (
            torch.randn(B, 4, S, S),
            torch.randn(B, 7, 32),
            torch.randn(B, 64),
            torch.full((B,), 3),
        ),
    ),
}


def error(got: Any, wanted: Any) -> float:
    """The largest relative error of any tensor in two equal structures."""
    (a, spec), (b, other) = pytree.tree_flatten(got), pytree.tree_flatten(wanted)
    assert spec == other and type(got) is type(wanted)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
    return max(
        ((x.double() - y.double()).norm() / y.double().norm()).item() for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    make, arguments = NETWORKS[name]
    model = make().eval()
    fast = accelerate(model, strict=name != "dit")  # whose embeddings are PyTorch's
    with torch.no_grad():
        for batch, size in ((1, 8), (2, 16)):
            args = arguments(batch, size)
            wanted = model(*args)
            assert error(fast(*args), wanted) < 1e-5
        assert len(fast._graphs) == 1
        if name == "dit":
            assert error(fast(*args, return_dict=False), model(*args, return_dict=False)) < 1e-5
            assert fast.config is model.config and fast.dtype == torch.float32


def test_bfloat16_is_as_near_to_the_truth_as_eager() -> None:
    make, arguments = NETWORKS["dit"]
    model = make().eval()
    args = arguments(2, 8)
    with torch.no_grad():
        truth = model.double()(*pytree.tree_map(lambda t: t.double() if is_float(t) else t, args)).sample
        low = (
            model.float()
            .bfloat16()(*pytree.tree_map(lambda t: t.bfloat16() if is_float(t) else t, args))
            .sample
        )
    model.load_state_dict(model.float().state_dict())
    fast = accelerate(model, dtype=torch.bfloat16)
    got = fast(*args).sample
    assert got.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32
    assert (got.double() - truth).norm() <= 1.5 * (low.double() - truth).norm()


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def images(pipe: Any, **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(generator=generator, output_type="np", num_inference_steps=2, **options).images


def test_ddim_pipeline() -> None:
    pipe = diffusers.DDIMPipeline(unet2d().eval(), diffusers.DDIMScheduler())
    wanted = images(pipe, batch_size=2)
    forward = pipe.unet.forward
    fast = accelerate(pipe)
    assert "unet: not called yet" in fast.explain()
    assert abs(images(fast, batch_size=2) - wanted).max() < 1e-4
    assert "unet: " in fast.explain() and "conv2d + channel_bias" in fast.explain()
    assert fast.scheduler is pipe.scheduler and pipe.unet.forward is not forward
    assert fast.restore() is pipe and pipe.unet.forward == forward
    assert (images(pipe, batch_size=2) == wanted).all()


def test_stable_diffusion_pipeline() -> None:
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder().eval(),
        text_encoder=None,
        tokenizer=None,
        unet=unet_condition().eval(),
        scheduler=diffusers.EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prompt = {"prompt_embeds": torch.randn(1, 7, 32), "negative_prompt_embeds": torch.randn(1, 7, 32)}
    steps: list[int] = []

    def note(pipe: Any, step: int, t: Tensor, values: dict) -> dict:
        steps.append(step)
        return values

    wanted = images(pipe, **prompt, height=16, width=16)
    fast = accelerate(pipe)
    got = images(fast, **prompt, height=16, width=16, callback_on_step_end=note)
    assert abs(got - wanted).max() < 1e-4 and steps == [0, 1]
    told = fast.explain()
    assert "vae.encoder: not called yet" in told and "unet: " in told and "vae.decoder: " in told


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    class Odd(diffusers.UNet2DModel):
        def forward(self, sample: Tensor, timestep: Any, **more: Any) -> Any:
            return super().forward(sample if sample.sum() > 0 else sample, timestep, **more)

    pipe = diffusers.DDIMPipeline(Odd(**unet2d().config).eval(), diffusers.DDIMScheduler())
    wanted = images(pipe, batch_size=1)
    fast = accelerate(pipe)
    with pytest.warns(RuntimeWarning, match="Odd can't be captured: .*; it runs as it is"):
        assert (images(fast, batch_size=1) == wanted).all()
    assert "unet: runs as it is: accelerate: Odd can't be captured" in fast.explain()
