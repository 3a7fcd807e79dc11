"""group_norm_silu on the GPU.

Memory-bound: x read once or twice, the result written once. A group of up to 8,192 elements stays in the
registers of one program (256 threads x 32): one launch, one read. A larger one is cut into tiles of 4,096: at
most 64 partial statistics per group in a first launch, normalisation in a second, which finds x in L2 (50 MB
on an H100; SD's 2 x 320 x 64 x 64 in bfloat16 is 5 MB). Cutting matters: with B G = 32 groups of 2 MB (a VAE
decoder) one program per group would leave three quarters of 132 SMs idle. The cut depends on the group's size
only, and partials meet in a fixed order (Chan's rule), so a row's bits don't depend on the batch.

Channels-last reads runs of C/G elements; a 20-byte run (C/G = 10) uses 62 % of its 32-byte sectors, but the
neighbouring groups' programs find the rest in L2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_engine.kernels._launch import device_of

WHOLE = 8192
TILE = 4096
MAX_SPLITS = 64
NUM_WARPS = 8


@triton.jit
def _load_tile(
    x_ptr, tile, channels, pixels, stride_c, stride_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """The tile's values in float32, their offsets, which of them exist, and their channels in the group."""
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    c = tile // tiles_p * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    offsets = c[:, None] * stride_c + p[None, :] * stride_p
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    return x, offsets, inside, c


@triton.jit
def _moments(x, inside):
    """Count, mean and sum of squared deviations of a tile."""
    count = tl.sum(inside.to(tl.float32))
    mean = tl.sum(x) / count
    deviation = tl.where(inside, x - mean, 0.0)
    return count, mean, tl.sum(deviation * deviation)


@triton.jit
def _normalize_silu(
    x,
    mean,
    deviations,
    count,
    eps,
    weight_ptr,
    bias_ptr,
    c,
    channels,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
):
    y = (x - mean) * (1.0 / tl.sqrt(deviations / count + eps))
    if WEIGHT:
        y *= tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        y += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
    return y / (1.0 + tl.exp(-y))


@triton.jit
def whole_group_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    groups,
    channels,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    eps,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Program: one group of one sample, statistics and result."""
    group = tl.program_id(0) % groups
    start = (tl.program_id(0) // groups).to(tl.int64) * stride_b + group * channels * stride_c
    x, offsets, inside, c = _load_tile(
        x_ptr + start, 0, channels, pixels, stride_c, stride_p, BLOCK_C, BLOCK_P
    )
    count, mean, deviations = _moments(x, inside)
    weight_ptr += group * channels
    bias_ptr += group * channels
    y = _normalize_silu(x, mean, deviations, count, eps, weight_ptr, bias_ptr, c, channels, WEIGHT, BIAS)
    tl.store(out_ptr + start + offsets, y, mask=inside)


@triton.jit
def moments_kernel(
    x_ptr,
    partials_ptr,
    groups,
    channels,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    tiles,
    splits,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Program (split, group): moments of tiles split, split + splits, ... into partials (B G, 3, splits)."""
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    x_ptr += row // groups * stride_b + row % groups * channels * stride_c
    count = 0.0
    mean = 0.0
    deviations = 0.0
    for tile in range(split, tiles, splits):
        x, _, inside, _ = _load_tile(x_ptr, tile, channels, pixels, stride_c, stride_p, BLOCK_C, BLOCK_P)
        n, m, d = _moments(x, inside)
        both = count + n
        delta = m - mean
        mean += delta * (n / both)
        deviations += d + delta * delta * (count * n / both)
        count = both
    partials_ptr += row * 3 * splits + split
    tl.store(partials_ptr, count)
    tl.store(partials_ptr + splits, mean)
    tl.store(partials_ptr + 2 * splits, deviations)


@triton.jit
def normalize_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    partials_ptr,
    out_ptr,
    groups,
    channels,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    splits,
    eps,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Program (tile, group): combines the group's partials, normalises the tile."""
    row = tl.program_id(1).to(tl.int64)
    group = row % groups
    start = row // groups * stride_b + group * channels * stride_c
    split = tl.arange(0, SPLITS)
    partials_ptr += row * 3 * splits + split
    n = tl.load(partials_ptr, mask=split < splits, other=0.0)
    m = tl.load(partials_ptr + splits, mask=split < splits, other=0.0)
    d = tl.load(partials_ptr + 2 * splits, mask=split < splits, other=0.0)
    count = tl.sum(n)
    mean = tl.sum(n * m) / count
    deviations = tl.sum(d + n * (m - mean) * (m - mean))
    x, offsets, inside, c = _load_tile(
        x_ptr + start, tl.program_id(0), channels, pixels, stride_c, stride_p, BLOCK_C, BLOCK_P
    )
    weight_ptr += group * channels
    bias_ptr += group * channels
    y = _normalize_silu(x, mean, deviations, count, eps, weight_ptr, bias_ptr, c, channels, WEIGHT, BIAS)
    tl.store(out_ptr + start + offsets, y, mask=inside)


def tile(channels: int, pixels: int, limit: int, channels_first: bool) -> tuple[int, int]:
    """(channels, pixels) of a tile of at most `limit` elements, longest along the contiguous axis."""
    block_c, block_p = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if channels_first:
        block_p = min(block_p, limit)
        return min(block_c, limit // block_p), block_p
    block_c = min(block_c, limit)
    return block_c, min(block_p, limit // block_c)


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """x, copied if it is neither contiguous nor channels-last, and whether channels come first in memory."""
    if x.is_contiguous():
        return x, True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.ndim in formats and x.is_contiguous(memory_format=formats[x.ndim]):
        return x, False
    return x.contiguous(), True


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Launches the kernels; see `aigc_engine.ops.group_norm_silu`."""
    x, channels_first = _dense(x)
    out = torch.empty_like(x, dtype=dtype)  # stores convert to its dtype
    if x.numel() == 0:
        return out
    batch, all_channels = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    channels = all_channels // num_groups
    strides = (
        (all_channels * pixels, pixels, 1) if channels_first else (all_channels * pixels, 1, all_channels)
    )
    layout = (num_groups, channels, pixels, *strides)
    scale = x if weight is None else weight.contiguous()
    shift = x if bias is None else bias.contiguous()
    affine = {"WEIGHT": weight is not None, "BIAS": bias is not None}
    launch = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    block_c, block_p = tile(channels, pixels, WHOLE, channels_first)
    with device_of(x):
        if block_c >= channels and block_p >= pixels:
            whole_group_kernel[(batch * num_groups,)](
                x, scale, shift, out, *layout, eps, **affine, BLOCK_C=block_c, BLOCK_P=block_p, **launch
            )
            return out
        block_c, block_p = tile(channels, pixels, TILE, channels_first)
        tiles = triton.cdiv(channels, block_c) * triton.cdiv(pixels, block_p)
        splits = min(tiles, MAX_SPLITS)
        partials = torch.empty((batch * num_groups, 3, splits), dtype=torch.float32, device=x.device)
        blocks = {"BLOCK_C": block_c, "BLOCK_P": block_p}
        moments_kernel[(splits, batch * num_groups)](x, partials, *layout, tiles, splits, **blocks, **launch)
        normalize_kernel[(tiles, batch * num_groups)](
            x,
            scale,
            shift,
            partials,
            out,
            *layout,
            splits,
            eps,
            **affine,
            SPLITS=triton.next_power_of_2(splits),
            **blocks,
            **launch,
        )
    return out
