"""Whole networks as users have them: published configurations with random weights, and a call's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def sd15_unet(pixels: int, batch: int) -> Built:
    """Stable Diffusion 1.5's denoiser, prompts of 77 tokens.

    Reference: https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 (unet/config.json)
    """
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    size = pixels // 8
    return model, (torch.randn(batch, 4, size, size), 10, torch.randn(batch, 77, 768)), {}


def sd_vae_decoder(pixels: int) -> Built:
    """Stable Diffusion's decoder from latents to pixels.

    Reference: https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 (vae/config.json)
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    return vae.decoder, (torch.randn(1, 4, pixels // 8, pixels // 8),), {}


def ddpm_cifar10(batch: int) -> Built:
    """DDPM's denoiser of 32 x 32 images.

    Reference: https://huggingface.co/google/ddpm-cifar10-32 (config.json)
    """
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    return model, (torch.randn(batch, 3, 32, 32), 10), {}


def dit(layers: int, heads: int, batch: int) -> Built:
    """DiT of patch 2 on the latents of 256 x 256 images.

    Reference: https://huggingface.co/facebook/DiT-XL-2-256 (transformer/config.json)
    """
    from diffusers import DiTTransformer2DModel

    width = 72 if heads == 16 else 64
    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width, num_layers=layers, out_channels=8, sample_size=32
    )
    timestep, labels = torch.full((batch,), 10), torch.zeros(batch, dtype=torch.long)
    return model, (torch.randn(batch, 4, 32, 32),), {"timestep": timestep, "class_labels": labels}


def dcgan(batch: int) -> Built:
    """DCGAN's generator of 64 x 64 images.

    Reference: A. Radford, L. Metz, S. Chintala, 2016, https://arxiv.org/abs/1511.06434
    """
    widths, layers = (100, 512, 256, 128, 64), []
    for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        step = {"stride": 2, "padding": 1} if index else {}
        layers += [nn.ConvTranspose2d(before, after, 4, bias=False, **step), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
    return model, (torch.randn(batch, 100, 1, 1),), {}


def hifigan(frames: int) -> Built:
    """HiFi-GAN's generator (V1's sizes at SpeechT5's rates), frames of 80 mel bins.

    Reference: https://huggingface.co/microsoft/speecht5_hifigan (config.json)
    """
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(SpeechT5HifiGanConfig()), (torch.randn(frames, 80),), {}


NETWORKS: dict[str, Callable[[], Built]] = {
    "ddpm_cifar10_batch_1": lambda: ddpm_cifar10(1),
    "ddpm_cifar10_batch_16": lambda: ddpm_cifar10(16),
    "dit_b_2_batch_2": lambda: dit(12, 12, 2),
    "dit_xl_2_batch_2": lambda: dit(28, 16, 2),
    "sd15_unet_256px_batch_2": lambda: sd15_unet(256, 2),
    "sd15_unet_512px_batch_2": lambda: sd15_unet(512, 2),
    "sd_vae_decoder_512px": lambda: sd_vae_decoder(512),
    "dcgan_batch_64": lambda: dcgan(64),
    "hifigan_200_frames": lambda: hifigan(200),
}


def build(name: str, dtype: torch.dtype) -> Built:
    """A network in eval mode with its call's arguments, both in `dtype`."""
    torch.manual_seed(0)
    model, args, kwargs = NETWORKS[name]()

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    model = model.eval().requires_grad_(False).to(dtype)
    return model, tuple(cast(value) for value in args), {key: cast(value) for key, value in kwargs.items()}
