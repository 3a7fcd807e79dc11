"""Transposed one-dimensional convolution: how vocoders go from frames to samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.geometry import transposed_length
from aigc_engine.ops import checks
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.conv import check_epilogue, check_numbers, weight_fact
from aigc_engine.ops.conv_transpose import phases
from aigc_engine.ops.packing import check_weight, pack
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample


def pack_conv_transpose1d(weight: Tensor, *, stride: int = 1, precision: str | None = None) -> PackedWeight:
    """Lays a transposed convolution's weight out for the native kernel: a convolution for each remainder.

    Args:
        weight: (C, O, K) float32 or bfloat16.
        stride: as `conv_transpose1d` will be given.
        precision: of float32 products, as for `pack_linear`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight hasn't three axes, bad stride, or unknown precision.
    """
    checks.floating("pack_conv_transpose1d", "weight", weight)
    _check_kernel("pack_conv_transpose1d", weight)
    check_numbers("pack_conv_transpose1d", "stride", stride, (), 1)
    matrices = phases(weight[:, :, None], (1, stride))
    return pack("conv_transpose1d", weight, matrices, precision, stride=(stride,))


def _check_kernel(name: str, weight: Tensor | PackedWeight) -> None:
    shape = tuple(weight.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"{name}: weight shape {shape}, expected (C, O, K), each at least 1")


def _check_conv_transpose1d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> None:
    name = "conv_transpose1d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 3, 3)
    check_weight(name, name, weight, x)
    _check_kernel(name, weight)
    check_numbers(name, "stride", stride, (), 1)
    check_numbers(name, "padding", padding, (), 0)
    check_numbers(name, "output_padding", output_padding, (), 0)
    if isinstance(weight, PackedWeight) and weight.stride != (stride,):
        raise ValueError(f"{name}: stride {stride}, expected {weight.stride[0]} as weight was packed for")
    if output_padding >= stride:
        raise ValueError(f"{name}: output_padding {output_padding}, expected less than stride {stride}")
    B, C, L = x.shape
    width, out, taps = shape = tuple(weight.shape)
    if width != C:
        raise ValueError(f"{name}: x has {C} channels, expected {width} as weight {shape}")
    length = transposed_length(L, taps, stride, padding, output_padding)
    if L < 1 or length < 1:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected a result of at least one sample")
    check_epilogue(name, x, (B, out, length), bias, act, slope, residual=residual)


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    return weight_fact(weight)


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    numbers = (options.get(name, default) for name, default in _DEFAULTS.items())
    length = transposed_length(x.shape[2], weight.shape[2], *numbers)
    moved = x.numel() + weight.shape.numel() + x.shape[0] * weight.shape[1] * length
    return 2.0 * x.shape[0] * x.shape[2] * weight.shape.numel(), float(moved) * x.element_size()


_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0}


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def packed(C: int, out: int, taps: int, stride: int) -> PackedWeight:
        weight = torch.randn((C, out, taps), generator=g) / math.sqrt(C)
        return pack_conv_transpose1d(weight.to(device, dtype), stride=stride)

    for taps, stride, padding in ((8, 4, 2), (16, 8, 4), (3, 2, 1), (2, 3, 0), (7, 1, 3)):
        name = f"kernel_{taps}_stride_{stride}_padding_{padding}"
        kwargs: dict[str, Any] = {"stride": stride, "padding": padding}
        yield Sample(name, (randn(2, 40, 13), packed(40, 20, taps, stride), randn(20)), kwargs, batch_axis=0)
    rest = {"stride": 2, "padding": 1, "output_padding": 1, "act": "leaky_relu", "slope": 0.1}
    around = {**rest, "residual": randn(2, 24, 18)}
    x = randn(2, 9, 33).transpose(1, 2)
    yield Sample("residual", (x, packed(33, 24, 3, 2), randn(24)), around, batch_axis=0)
    yield Sample("empty", (randn(0, 8, 9), packed(8, 8, 4, 2)), {"stride": 2})
    vocoder = {"stride": 4, "padding": 2}
    yield Sample(
        "hifigan_upsample", (randn(1, 256, 800), packed(256, 128, 8, 4), randn(128)), vocoder, bench=True
    )


@op(
    check=_check_conv_transpose1d,
    samples=_samples,
    dtypes=checks.FLOATS,
    facts=_facts,
    cost=_cost,
    tiled=True,
)
def conv_transpose1d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Transposed one-dimensional convolution with activation and residual; never stuffed with zeros.

    .. math:: y_{o} = \operatorname{act}\Bigl(\sum_{s i + k = o + p} W_k x_i + b\Bigr) + r_o

    References:
        J. Kong, J. Kim, J. Bae, "HiFi-GAN", 2020, https://arxiv.org/abs/2010.05646 (where it's used)

    Args:
        x: (B, C, L) float32 or bfloat16; the native kernel reads it as it is where channels are contiguous.
        weight: (C, O, K) in x's dtype, or `pack_conv_transpose1d` of it, which the native kernel needs.
        bias: b, (O,) in x's dtype, or None.
        stride, padding, output_padding: samples, as torch.nn.ConvTranspose1d's.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        residual: r, y's shape, or None.

    Returns:
        (B, O, L') in x's dtype, L' = (L - 1) stride - 2 padding + K + output_padding; channels contiguous
        from the native kernel.

    Precision, Memory: as `conv2d`.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, another stride than packed for, or the weight was changed
            after it was packed.
    """
    w = tensor_of(weight).to(x.dtype)
    y = F.conv_transpose1d(x, w, bias, stride, padding, output_padding)
    if residual is None:
        return ACTIVATIONS[act](y, slope)  # in float32 inside, rounded once
    wide = y.float() if y.dtype == torch.bfloat16 else y
    return (ACTIVATIONS[act](wide, slope) + residual).to(x.dtype)
