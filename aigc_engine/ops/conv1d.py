"""One-dimensional convolution: audio, and video along time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.geometry import ends_of, out_length
from aigc_engine.ops import checks
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.conv import check_epilogue, check_kernel, check_numbers, weight_fact
from aigc_engine.ops.packing import check_weight, pack_taps
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample


def pack_conv1d(weight: Tensor, *, groups: int = 1, precision: str | None = None) -> PackedWeight:
    """Lays a convolution's weight out for the native kernel; done once, used by `conv1d` as often as wanted.

    Args:
        weight: (O, C / groups, K) float32 or bfloat16.
        groups: as `conv1d` will be given.
        precision: of float32 products, as for `pack_linear`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight hasn't three axes, groups don't divide O, or unknown precision.
    """
    checks.floating("pack_conv1d", "weight", weight)
    check_kernel("pack_conv1d", weight, groups, "(O, C / groups, K)")
    return pack_taps("conv1d", weight, groups, precision)


def _check_conv1d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    dilation: int = 1,
    groups: int = 1,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> None:
    name = "conv1d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 3, 3)
    check_weight(name, name, weight, x)
    check_kernel(name, weight, groups, "(O, C / groups, K)")
    check_numbers(name, "stride", stride, (), 1)
    check_numbers(name, "padding", padding, (2,), 0)
    check_numbers(name, "dilation", dilation, (), 1)
    B, C, L = x.shape
    out, width, taps = shape = tuple(weight.shape)
    if width * groups != C:
        raise ValueError(f"{name}: x has {C} channels, expected {width * groups} as weight {shape}")
    length = out_length(L, taps, stride, padding, dilation)
    if length < 1:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected room for weight {shape}")
    check_epilogue(name, x, (B, out, length), bias, act, slope, residual=residual)


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    length = out_length(x.shape[2], weight.shape[2], stride, options.get("padding", 0), dilation)
    made = x.shape[0] * length
    moved = x.numel() + weight.shape.numel() + made * weight.shape[0]
    return 2.0 * made * weight.shape.numel(), float(moved) * x.element_size()


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    return weight_fact(weight)


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def packed(out: int, C: int, taps: int, groups: int = 1) -> PackedWeight:
        weight = torch.randn((out, C, taps), generator=g) / math.sqrt(C * taps)
        return pack_conv1d(weight.to(device, dtype), groups=groups)

    for L in (1, 15, 17, 33, 65):
        yield Sample(
            f"length_{L}", (randn(2, 24, L), packed(20, 24, 3), randn(20)), {"padding": 1}, batch_axis=0
        )
    causal = {"padding": (6, 0), "dilation": 3, "act": "tanh"}
    yield Sample("causal_dilated", (randn(2, 33, 40), packed(16, 33, 3), randn(16)), causal, batch_axis=0)
    yield Sample("strided", (randn(2, 16, 50), packed(8, 16, 5)), {"stride": 3}, batch_axis=0)
    yield Sample("groups", (randn(2, 12, 20), packed(24, 3, 3, 4)), {"groups": 4, "padding": 1}, batch_axis=0)
    causal = {"groups": 40, "padding": (6, 0), "dilation": 2, "act": "silu"}
    yield Sample("depthwise", (randn(2, 40, 33), packed(40, 1, 4, 40), randn(40)), causal, batch_axis=0)
    for taps in (3, 4, 5, 7):
        for L in (1, 15, 20, 39):
            bare = {"groups": 36, "padding": taps // 2}
            args = (randn(2, 36, L), packed(36, 1, taps, 36), randn(36))
            yield Sample(f"depthwise_{taps}_{L}", args, bare, batch_axis=0)
    rest = {"act": "leaky_relu", "slope": 0.1, "residual": randn(2, 40, 30), "padding": 3}
    yield Sample(
        "residual", (randn(2, 30, 40).transpose(1, 2), packed(40, 40, 7), randn(40)), rest, batch_axis=0
    )
    few = {"padding": 3, "act": "tanh"}
    yield Sample("few", (randn(2, 32, 48), packed(1, 32, 7), randn(1)), few, batch_axis=0)
    yield Sample("empty", (randn(0, 8, 9), packed(8, 8, 3)))
    vocoder = {"padding": 5, "act": "leaky_relu", "slope": 0.1}
    yield Sample(
        "hifigan_resblock", (randn(1, 128, 12800), packed(128, 128, 11), randn(128)), vocoder, bench=True
    )


@op(check=_check_conv1d, samples=_samples, dtypes=checks.FLOATS, facts=_facts, cost=_cost, tiled=True)
def conv1d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    dilation: int = 1,
    groups: int = 1,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    r"""One-dimensional convolution (cross-correlation) with activation and residual.

    .. math:: y = \operatorname{act}(W * x + b) + r

    References:
        A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016,
        https://arxiv.org/abs/1609.03499 (causal and dilated)

    Args:
        x: (B, C, L) float32 or bfloat16; the native kernel reads it as it is where channels are contiguous,
            as its own results are.
        weight: (O, C / groups, K) in x's dtype, or `pack_conv1d` of it, which the native kernel needs.
        bias: b, (O,) in x's dtype, or None.
        stride, dilation: samples.
        padding: samples of zeros, an int or (left, right); causal is ((K - 1) dilation, 0).
        groups: divides C and O.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        residual: r, y's shape, or None.

    Returns:
        (B, O, L') in x's dtype; channels contiguous from the native kernel.

    Precision, Memory: as `conv2d`.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, or the weight was changed after it was packed.
    """
    y = F.conv1d(F.pad(x, ends_of(padding)), tensor_of(weight).to(x.dtype), bias, stride, 0, dilation, groups)
    if residual is None:
        return ACTIVATIONS[act](y, slope)  # in float32 inside, rounded once
    wide = y.float() if y.dtype == torch.bfloat16 else y
    return (ACTIVATIONS[act](wide, slope) + residual).to(x.dtype)
