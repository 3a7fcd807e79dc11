"""Three-dimensional convolution: video."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.geometry import ends_of_volume, out_volume, triple
from aigc_engine.ops import checks
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.conv import check_epilogue, check_kernel, check_numbers, weight_fact
from aigc_engine.ops.packing import check_weight, pack
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample

AXES = "(O, C, kT, kH, kW)"


def pack_conv3d(weight: Tensor, *, precision: str | None = None) -> PackedWeight:
    """Lays a convolution's weight out for the native kernel; done once, used by `conv3d` as often as wanted.

    Args:
        weight: (O, C, kT, kH, kW) float32 or bfloat16.
        precision: of float32 products, as for `pack_linear`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight hasn't five axes, or unknown precision.
    """
    checks.floating("pack_conv3d", "weight", weight)
    check_kernel("pack_conv3d", weight, 1, AXES)
    return pack("conv3d", weight, [weight.permute(0, 3, 4, 2, 1).flatten(1)], precision)


def _check_conv3d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> None:
    name = "conv3d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 5, 5)
    check_weight(name, name, weight, x)
    check_kernel(name, weight, 1, AXES)
    check_numbers(name, "stride", stride, (3,), 1)
    check_numbers(name, "padding", padding, (3, 6), 0)
    out, width, *taps = shape = tuple(weight.shape)
    if x.shape[1] != width:
        raise ValueError(f"{name}: x has {x.shape[1]} channels, expected {width} as weight {shape}")
    size = out_volume(x.shape[2:], taps, triple(stride), ends_of_volume(padding))
    if min(size) < 1:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected room for weight {shape}")
    check_epilogue(name, x, (x.shape[0], out, *size), bias, act, slope, residual=residual)


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    return weight_fact(weight)


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    stride, ends = triple(options.get("stride", 1)), ends_of_volume(options.get("padding", 0))
    made = x.shape[0] * math.prod(out_volume(x.shape[2:], weight.shape[2:], stride, ends))
    moved = x.numel() + weight.shape.numel() + made * weight.shape[0]
    return 2.0 * made * weight.shape.numel(), float(moved) * x.element_size()


# Channels in, channels out, frames and size of 3x3x3 convolutions.
WORKLOADS = {"video_vae_64px": (128, 128, 5, 64), "video_vae_16px": (512, 512, 3, 16)}


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def video(*shape: int) -> Tensor:
        return randn(*shape).contiguous(memory_format=torch.channels_last_3d)

    def packed(out: int, C: int, *taps: int) -> PackedWeight:
        weight = torch.randn((out, C, *taps), generator=g) / math.sqrt(C * math.prod(taps))
        return pack_conv3d(weight.to(device, dtype))

    same = {"padding": 1}
    for C in (1, 3, 16, 17, 32):
        yield Sample(f"in_{C}", (video(2, C, 4, 5, 6), packed(20, C, 3, 3, 3), randn(20)), same, batch_axis=0)
    for taps in ((1, 1, 1), (1, 2, 2), (3, 1, 1), (2, 3, 1), (4, 3, 5)):
        name = "x".join(map(str, taps))
        yield Sample(f"kernel_{name}", (video(2, 24, 5, 6, 7), packed(17, 24, *taps)), batch_axis=0)
    patches = {"stride": (1, 2, 2)}
    cut = (video(2, 16, 3, 6, 8), packed(40, 16, 1, 2, 2), randn(40))
    yield Sample("patches", cut, patches, batch_axis=0)
    moved = {"stride": (2, 1, 2), "padding": (1, 2, 0)}
    yield Sample("strided", (video(2, 12, 7, 5, 6), packed(16, 12, 3, 3, 3)), moved, batch_axis=0)
    skipped = {"stride": (2, 1, 1), "padding": (0, 1, 1)}
    yield Sample("frames", (video(2, 12, 5, 5, 6), packed(16, 12, 1, 3, 3)), skipped, batch_axis=0)
    causal = {"padding": (1, 1, 1, 1, 2, 0), "act": "silu"}
    yield Sample("causal", (randn(2, 8, 4, 5, 5), packed(16, 8, 3, 3, 3), randn(16)), causal, batch_axis=0)
    rest = {"padding": 1, "act": "leaky_relu", "slope": 0.1, "residual": randn(2, 40, 3, 6, 7)}
    yield Sample("residual", (video(2, 32, 3, 6, 7), packed(40, 32, 3, 3, 3), randn(40)), rest, batch_axis=0)
    beyond = {"padding": (4, 3, 3)}
    yield Sample("beyond", (video(1, 16, 1, 2, 3), packed(8, 16, 3, 3, 3)), beyond, batch_axis=0)
    sliced = (video(2, 24, 6, 5, 6)[:, 4:20, ::2, 1:], packed(9, 16, 3, 3, 3), randn(9))
    yield Sample("sliced", sliced, same, batch_axis=0)
    yield Sample("empty", (video(0, 8, 3, 4, 4), packed(8, 8, 3, 3, 3)))
    whole = torch.randint(-4, 5, (2, 12, 4, 5, 5), generator=g).to(device, dtype)
    weight = pack_conv3d(torch.randint(-1, 2, (6, 12, 3, 3, 3), generator=g).to(device, dtype))
    yield Sample("integers", (whole, weight), same, exact=dtype == torch.float32)
    for name, (C, out, T, size) in WORKLOADS.items():
        args = (video(1, C, T, size, size), packed(out, C, 3, 3, 3), randn(out))
        yield Sample(name, args, same, bench=True)


@op(check=_check_conv3d, samples=_samples, dtypes=checks.FLOATS, facts=_facts, cost=_cost, tiled=True)
def conv3d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Three-dimensional convolution (cross-correlation) with activation and residual.

    .. math:: y = \operatorname{act}(W * x + b) + r

    References:
        D. Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", 2015,
        https://arxiv.org/abs/1412.0767

    Args:
        x: (B, C, T, H, W) float32 or bfloat16; taps along T make the native kernel copy it once.
        weight: (O, C, kT, kH, kW) in x's dtype, or `pack_conv3d` of it, which the native kernel needs.
        bias: b, (O,) in x's dtype, or None.
        stride: an int, or (frames, rows, columns).
        padding: zeros; an int, (frames, rows, columns), or (left, right, top, bottom, before, after); causal
            is kT - 1 before and none after.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        residual: r, y's shape, or None.

    Returns:
        (B, O, T', H', W') in x's dtype; channels-last from the native kernel.

    Precision: as `conv2d`.

    Memory: the result; with taps along T also x and its padding frames once more.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, or the weight was changed after it was packed.
    """
    y = F.conv3d(F.pad(x, ends_of_volume(padding)), tensor_of(weight).to(x.dtype), bias, triple(stride))
    if residual is None:
        return ACTIVATIONS[act](y, slope)  # in float32 inside, rounded once
    wide = y.float() if y.dtype == torch.bfloat16 else y
    return (ACTIVATIONS[act](wide, slope) + residual).to(x.dtype)
