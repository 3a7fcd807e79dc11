"""Transposed convolutions: the upsampling layers of GANs and vocoders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.geometry import pair, taps_of, transposed_size
from aigc_engine.ops import checks
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.conv import check_epilogue, check_numbers, weight_fact
from aigc_engine.ops.packing import check_weight, pack
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample


def pack_conv_transpose2d(
    weight: Tensor, *, stride: int | Sequence[int] = 1, precision: str | None = None
) -> PackedWeight:
    """Lays a transposed convolution's weight out for the native kernel: a convolution for each remainder.

    Args:
        weight: (C, O, kH, kW) float32 or bfloat16.
        stride: as `conv_transpose2d` will be given.
        precision: of float32 products, as for `pack_linear`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight hasn't four axes, bad stride, or unknown precision.
    """
    checks.floating("pack_conv_transpose2d", "weight", weight)
    _check_kernel("pack_conv_transpose2d", weight)
    check_numbers("pack_conv_transpose2d", "stride", stride, (2,), 1)
    strides = pair(stride)
    return pack("conv_transpose2d", weight, phases(weight, strides), precision, stride=strides)


def phases(weight: Tensor, strides: tuple[int, int]) -> list[Tensor]:
    """The matrices of a weight (C, O, kH, kW): for each remainder of the stride, its taps."""
    matrices = []
    for remainder_y in range(strides[0]):
        for remainder_x in range(strides[1]):
            rows = list(taps_of(weight.shape[2], strides[0], remainder_y))
            columns = list(taps_of(weight.shape[3], strides[1], remainder_x))
            taps = weight[:, :, rows][:, :, :, columns].permute(1, 2, 3, 0).flatten(1)
            # No tap reaches these outputs (a stride beyond the kernel): one of zeros does.
            matrices.append(taps if taps.shape[1] else weight.new_zeros(weight.shape[1], weight.shape[0]))
    return matrices


def _check_kernel(name: str, weight: Tensor | PackedWeight) -> None:
    shape = tuple(weight.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"{name}: weight shape {shape}, expected (C, O, kH, kW), each at least 1")


def _check_conv_transpose2d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> None:
    name = "conv_transpose2d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 4, 4)
    check_weight(name, name, weight, x)
    _check_kernel(name, weight)
    check_numbers(name, "stride", stride, (2,), 1)
    check_numbers(name, "padding", padding, (2,), 0)
    check_numbers(name, "output_padding", output_padding, (2,), 0)
    if isinstance(weight, PackedWeight) and weight.stride != pair(stride):
        raise ValueError(f"{name}: stride {stride}, expected {weight.stride} as weight was packed for")
    if any(o >= s for o, s in zip(pair(output_padding), pair(stride), strict=True)):
        raise ValueError(f"{name}: output_padding {output_padding}, expected less than stride {stride}")
    if x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{name}: x has {x.shape[1]} channels, expected {weight.shape[0]} as weight {tuple(weight.shape)}"
        )
    size = transposed_size(x.shape[2:], weight.shape[2:], stride, padding, output_padding)
    if min(x.shape[2:]) < 1 or min(size) < 1:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected a result of at least one pixel")
    check_epilogue(name, x, (x.shape[0], weight.shape[1], *size), bias, act, slope, residual=residual)


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    return weight_fact(weight)


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    numbers = (options.get(name, default) for name, default in _DEFAULTS.items())
    size = transposed_size(x.shape[2:], weight.shape[2:], *numbers)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    made = x.shape[0] * size[0] * size[1] * weight.shape[1]
    return 2.0 * pixels * weight.shape.numel(), float(
        x.numel() + weight.shape.numel() + made
    ) * x.element_size()


_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0}

# Channels in and out, size, stride and padding of DCGAN's layers for 64 px (Radford et al., 2015).
WORKLOADS = {
    "dcgan_4px": (100, 1024, 1, 1, 0),
    "dcgan_8px": (1024, 512, 4, 2, 1),
    "dcgan_16px": (512, 256, 8, 2, 1),
    "dcgan_32px": (256, 128, 16, 2, 1),
}


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def nhwc(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype).contiguous(memory_format=torch.channels_last)

    def packed(C: int, out: int, kH: int, kW: int, stride: int | tuple[int, int]) -> PackedWeight:
        weight = torch.randn((C, out, kH, kW), generator=g) / math.sqrt(C)
        return pack_conv_transpose2d(weight.to(device, dtype), stride=stride)

    def vector(n: int) -> Tensor:
        return torch.randn(n, generator=g).to(device, dtype)

    for taps, stride, padding in ((4, 2, 1), (3, 2, 1), (2, 2, 0), (5, 3, 2), (4, 1, 0), (2, 3, 0)):
        name = f"kernel_{taps}_stride_{stride}_padding_{padding}"
        kwargs: dict[str, Any] = {"stride": stride, "padding": padding}
        weight = packed(40, 20, taps, taps, stride)
        yield Sample(name, (nhwc(2, 40, 5, 6), weight, vector(20)), kwargs, batch_axis=0)
    mixed = {"stride": (1, 2), "padding": (0, 1), "output_padding": (0, 1), "act": "relu"}
    yield Sample("mixed", (nhwc(2, 17, 3, 4), packed(17, 33, 2, 3, (1, 2)), vector(33)), mixed, batch_axis=0)
    rest = {"stride": 2, "padding": 1, "act": "leaky_relu", "residual": nhwc(2, 24, 8, 8)}
    yield Sample("residual", (nhwc(2, 32, 4, 4), packed(32, 24, 4, 4, 2), vector(24)), rest, batch_axis=0)
    yield Sample(
        "contiguous", (nhwc(2, 32, 4, 4).contiguous(), packed(32, 8, 4, 4, 2)), {"stride": 2}, batch_axis=0
    )
    for out, taps, stride, padding, more in (
        (1, 6, 4, 1, 0),
        (3, 4, 2, 1, 0),
        (4, 3, 2, 1, 1),
        (3, 5, 2, 2, 1),
    ):
        few = {"stride": stride, "padding": padding, "output_padding": more, "act": "tanh"}
        weight = packed(32, out, taps, taps, stride)
        yield Sample(f"few_{out}_{taps}", (nhwc(2, 32, 4, 5), weight, vector(out)), few, batch_axis=0)
    yield Sample("one_pixel", (nhwc(3, 100, 1, 1), packed(100, 32, 4, 4, 1)), batch_axis=0)
    cut = {"stride": (2, 3), "padding": (1, 0), "output_padding": (0, 2), "act": "silu"}
    cut |= {"residual": nhwc(2, 20, 3, 6)}
    yield Sample("one_pixel_cut", (nhwc(2, 40, 1, 1), packed(40, 20, 5, 4, (2, 3))), cut, batch_axis=0)
    yield Sample("empty", (nhwc(0, 8, 4, 4), packed(8, 8, 4, 4, 2)), {"stride": 2})
    whole = torch.randint(-4, 5, (2, 12, 5, 5), generator=g).to(device, dtype)
    integers = pack_conv_transpose2d(
        torch.randint(-1, 2, (12, 6, 4, 4), generator=g).to(device, dtype), stride=2
    )
    exact = {"stride": 2, "padding": 1, "act": "relu"}
    yield Sample("integers", (whole, integers), exact, exact=dtype == torch.float32)
    for batch in (1, 64):
        for name, (C, out, size, stride, padding) in WORKLOADS.items():
            kwargs = {"stride": stride, "padding": padding, "act": "relu"}
            arguments = (nhwc(batch, C, size, size), packed(C, out, 4, 4, stride), vector(out))
            yield Sample(f"{name}_b{batch}", arguments, kwargs, bench=True)


@op(
    check=_check_conv_transpose2d,
    samples=_samples,
    dtypes=checks.FLOATS,
    facts=_facts,
    cost=_cost,
    tiled=True,
)
def conv_transpose2d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    act: str = "none",
    slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Transposed two-dimensional convolution with activation and residual; never stuffed with zeros.

    .. math:: y_{o} = \operatorname{act}\Bigl(\sum_{s i + k = o + p} W_k x_i + b\Bigr) + r_o

    Outputs of one remainder (o + p) mod s form an ordinary convolution of every s-th tap (polyphase form).

    References:
        W. Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016,
        https://arxiv.org/abs/1609.07009
        A. Radford, L. Metz, S. Chintala, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", 2015, https://arxiv.org/abs/1511.06434 (where it's used)

    Args:
        x: (B, C, H, W) float32 or bfloat16; channels-last is read as it is.
        weight: (C, O, kH, kW) in x's dtype, or `pack_conv_transpose2d` of it, which the native kernel needs.
        bias: b, (O,) in x's dtype, or None.
        stride, padding, output_padding: pixels, an int or (rows, columns), as torch.nn.ConvTranspose2d's.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        residual: r, y's shape, or None.

    Returns:
        (B, O, H', W') in x's dtype, H' = (H - 1) stride - 2 padding + kH + output_padding; channels-last from
        the native kernel.

    Precision, Memory: as `conv2d`.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, another stride than packed for, or the weight was changed
            after it was packed.
    """
    w = tensor_of(weight).to(x.dtype)
    y = F.conv_transpose2d(x, w, bias, pair(stride), pair(padding), pair(output_padding))
    if residual is None:
        return ACTIVATIONS[act](y, slope)  # in float32 inside, rounded once
    wide = y.float() if y.dtype == torch.bfloat16 else y
    return (ACTIVATIONS[act](wide, slope) + residual).to(x.dtype)
