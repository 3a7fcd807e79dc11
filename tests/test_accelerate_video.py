"""Networks of video from diffusers, tiny and with random weights: native throughout, as eager computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from aigc_engine import accelerate
from tests.diffusers_toys import MARKS, error

pytestmark = MARKS


def wan_decoder() -> nn.Module:
    from diffusers import AutoencoderKLWan

    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return AutoencoderKLWan(
        base_dim=16, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], **statistics
    ).decoder


def wan_transformer() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
    )


def cogvideox_decoder() -> nn.Module:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).decoder


def hunyuan_decoder() -> nn.Module:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4
    ).decoder


def svd_decoder() -> nn.Module:
    from diffusers import AutoencoderKLTemporalDecoder

    return AutoencoderKLTemporalDecoder(
        block_out_channels=(32,), layers_per_block=1, down_block_types=("DownEncoderBlock2D",)
    ).decoder


def clip(batch: int, frames: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 4, frames, size, size)


# Arguments for B clips of T frames of S x S.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int, int], tuple[Any, ...]]]] = {
    "wan_decoder": (wan_decoder, lambda B, T, S: (clip(B, T, S),)),
    "wan_transformer": (
        wan_transformer,
        lambda B, T, S: (clip(B, T, S), torch.full((B,), 5), torch.randn(B, 7, 16)),
    ),
    "cogvideox_decoder": (cogvideox_decoder, lambda B, T, S: (clip(B, T, S // 2),)),
    "hunyuan_decoder": (hunyuan_decoder, lambda B, T, S: (clip(B, T, S // 2),)),
    "svd_decoder": (
        svd_decoder,
        lambda B, T, S: (torch.randn(B * T, 4, S, S), torch.zeros(B, T), T),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_video_networks(name: str) -> None:
    make, arguments = NETWORKS[name]
    model = make().eval()
    fast = accelerate(model, strict=True)
    with torch.no_grad():
        for batch, frames, size in ((1, 2, 8), (2, 4, 12)):
            given = arguments(batch, frames, size)
            assert error(fast(*given), model(*given)) < 1e-5
