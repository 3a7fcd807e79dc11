"""A small class-conditional UNet for diffusion on images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.models.layers import (
    Conv2d,
    Linear,
    attention,
    channels_last,
    group_norm,
    group_norm_silu,
    native_rows,
    rowwise_silu,
    timestep_embedding,
)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes: `widths[i]` channels and `depths[i]` blocks at 1 / (patch 2^i) of the image size."""

    channels: int = 1
    image_size: int = 28
    patch: int = 2
    widths: tuple[int, ...] = (32, 64)
    depths: tuple[int, ...] = (1, 1)
    heads: int = 4
    groups: int = 2
    num_classes: int = 10
    embedding: int = 128


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + embedding)))."""

    def __init__(self, c_in: int, c_out: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.embed = Linear(embedding, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.skip = Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(group_norm_silu(x, self.norm1), channel_bias=self.embed(embedding))
        return self.conv2(group_norm_silu(h, self.norm2), residual=self.skip(x))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.out = Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(group_norm(x, self.norm)).permute(0, 2, 3, 1)
        q, k, v = qkv.reshape(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        h = attention(q, k, v).permute(0, 2, 1, 3).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return self.out(h, residual=x)


class UNet(nn.Module):
    """Denoiser eps or v of (x_t, t, label), whichever it was trained for.

    The image is cut into patch x patch squares first, so that no layer works at full resolution.

    References:
        Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239
        Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233
    """

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = c = UNetConfig(**config)  # type: ignore[arg-type]
        self.null_label = c.num_classes
        pixels = c.channels * c.patch**2
        self.time1 = Linear(c.embedding, c.embedding)
        self.time2 = Linear(c.embedding, c.embedding)
        self.label = nn.Embedding(c.num_classes + 1, c.embedding)
        self.conv_in = Conv2d(pixels, c.widths[0], 3, padding=1)
        width, skips = c.widths[0], [c.widths[0]]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (out, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            if level > 0:
                self.down.append(Conv2d(width, out, 3, stride=2, padding=1))
                width = out
                skips.append(width)
            for _ in range(depth):
                self.down.append(ResBlock(width, out, c.embedding, c.groups))
                width = out
                skips.append(width)
        self.middle1 = ResBlock(width, width, c.embedding, c.groups)
        self.attention = AttentionBlock(width, c.heads, c.groups)
        self.middle2 = ResBlock(width, width, c.embedding, c.groups)
        for level, (out, depth) in reversed(list(enumerate(zip(c.widths, c.depths, strict=True)))):
            for _ in range(depth + 1):
                self.up.append(ResBlock(width + skips.pop(), out, c.embedding, c.groups))
                width = out
            if level > 0:
                self.up.append(Conv2d(width, c.widths[level - 1], 3, padding=1))
                width = c.widths[level - 1]
        self.norm_out = nn.GroupNorm(c.groups, width)
        self.conv_out = Conv2d(width, pixels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """
        Args:
            x: noisy images x_t (B, C, H, W).
            t: timesteps (B,), 0 (clean) to T - 1 (noise).
            label: classes (B,) int64, `null_label` for none; None is none for all.
        Returns:
            The prediction (B, C, H, W).
        """
        if label is None:
            label = torch.full(t.shape, self.null_label, dtype=torch.int64, device=t.device)
        # A lone row would leave the convolutions that all other batches take.
        if not native_rows(x) and x.shape[0] == 1:
            return self(x.expand(2, -1, -1, -1), t.expand(2), label.expand(2))[:1]
        angles = timestep_embedding(t, self.config.embedding).to(self.time1.weight.dtype)
        time = self.time2(rowwise_silu(self.time1(angles)))
        e = rowwise_silu(time + self.label(label))
        h = self.conv_in(channels_last(F.pixel_unshuffle(x, self.config.patch)))
        skips = [h]
        for layer in self.down:
            h = layer(h, e) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, e)), e)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), e)
            elif (size := skips[-1].shape[-2:]) == (2 * h.shape[-2], 2 * h.shape[-1]):
                h = layer(h, upsample=2)
            else:
                h = layer(F.interpolate(h, size=size, mode="nearest"))
        h = self.conv_out(group_norm_silu(h, self.norm_out))
        return F.pixel_shuffle(h, self.config.patch).contiguous()
