"""Convolutions with what goes before and after them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.geometry import is_depthwise, out_size, pads_of, pair
from aigc_engine.ops import checks, conv_samples, int8
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.packing import check_weight, pack_taps
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample


def pack_conv2d(
    weight: Tensor, *, groups: int = 1, precision: str | None = None, quantize: str | None = None
) -> PackedWeight:
    """Lays a convolution's weight out for the native kernel; done once, used by `conv2d` as often as wanted.

    Args:
        weight: (O, C / groups, kH, kW) float32 or bfloat16.
        groups: as `conv2d` will be given.
        precision: of float32 products, as for `pack_linear`; depthwise weights (groups = C = O) stay float32.
        quantize: "int8": integers up to 127, a scale max|w| / 127 for each output channel; `conv2d` then
            quantises the patch under each output pixel alike, and adds int8 products exactly. Lossy, as for
            `pack_linear`; what the weight lost is PackedWeight.error. None: as `precision`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight hasn't four axes, groups don't divide O, or unknown precision or quantize; to be
            quantised, but with NaN or infinity, or C / groups kH kW > 131072.
    """
    checks.floating("pack_conv2d", "weight", weight)
    check_kernel("pack_conv2d", weight, groups)
    return pack_taps("conv2d", weight, groups, precision, quantize)


def check_kernel(
    name: str, weight: Tensor | PackedWeight, groups: int, axes: str = "(O, C / groups, kH, kW)"
) -> None:
    """`weight` has these axes, `groups` divides the first; packed, it was for as many groups."""
    shape = tuple(weight.shape)
    if len(shape) != axes.count(",") + 1 or 0 in shape:
        raise ValueError(f"{name}: weight shape {shape}, expected {axes}, each at least 1")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or shape[0] % groups:
        raise ValueError(f"{name}: groups {groups!r}, expected a divisor of weight's {shape[0]} channels")
    if isinstance(weight, PackedWeight) and weight.groups != groups:
        raise ValueError(f"{name}: groups {groups}, expected {weight.groups} as weight was packed for")


def check_numbers(name: str, argument: str, value: object, lengths: tuple[int, ...], least: int) -> None:
    """`value` is an int, or a sequence of one of the lengths, none below `least`."""
    numbers = [value] if isinstance(value, int) else value
    whole = isinstance(numbers, (list, tuple)) and all(type(n) is int and n >= least for n in numbers)
    if not whole or (not isinstance(value, int) and len(numbers) not in lengths):  # type: ignore[arg-type]
        several = "".join(f" or {length} of them" for length in lengths)
        raise ValueError(f"{name}: {argument} {value!r}, expected an int >= {least}{several}")


def _check_conv2d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    act: str = "none",
    slope: float = 0.01,
    channel_bias: Tensor | None = None,
    residual: Tensor | None = None,
    concat: Tensor | None = None,
    upsample: int = 1,
) -> None:
    name = "conv2d"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 4, 4)
    check_weight(name, name, weight, x)
    check_kernel(name, weight, groups)
    check_numbers(name, "stride", stride, (2,), 1)
    check_numbers(name, "padding", padding, (2, 4), 0)
    check_numbers(name, "dilation", dilation, (2,), 1)
    if type(upsample) is not int or upsample < 1:
        raise ValueError(f"{name}: upsample {upsample!r}, expected an int >= 1")
    B, C, H, W = x.shape
    if concat is not None:
        checks.tensor(name, "concat", concat)
        checks.same(name, "concat", concat, "x", x)
        if concat.ndim != 4 or (concat.shape[0], *concat.shape[2:]) != (B, H, W) or groups != 1:
            raise ValueError(
                f"{name}: concat shape {tuple(concat.shape)}, expected ({B}, C, {H}, {W}) as x, and groups 1"
            )
        C += concat.shape[1]
    if weight.shape[1] * groups != C:
        raise ValueError(
            f"{name}: x has {C} channels, expected {weight.shape[1] * groups} as weight {tuple(weight.shape)}"
        )
    size = out_size(
        (H * upsample, W * upsample), weight.shape[2:], pair(stride), pads_of(padding), pair(dilation)
    )
    if min(size) < 1:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected room for weight {tuple(weight.shape)}")
    check_epilogue(
        name, x, (B, weight.shape[0], *size), bias, act, slope, channel_bias=channel_bias, residual=residual
    )


def check_epilogue(
    name: str,
    x: Tensor,
    out: tuple[int, ...],
    bias: Tensor | None,
    act: str,
    slope: float,
    *,
    channel_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """What follows the products fits a result of shape `out`."""
    if bias is not None:
        checks.vector(name, "bias", bias, out[1], "x", x)
    checks.choice(name, "act", act, ACTIVATIONS)
    if not math.isfinite(slope):
        raise ValueError(f"{name}: slope {slope}, expected a finite number")
    for argument, value, wanted in (("channel_bias", channel_bias, out[:2]), ("residual", residual, out)):
        if value is not None:
            checks.tensor(name, argument, value)
            checks.same(name, argument, value, "x", x)
            checks.shape(name, argument, value, wanted)


def weight_fact(weight: Tensor | PackedWeight) -> Mapping[str, Any]:
    """Whether the weight lies in tiles that a kernel can read."""
    packed = isinstance(weight, PackedWeight) and weight.data is not None
    return {"weight": "packed" if packed else "tensor"}


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    depthwise = "no"
    quantised = isinstance(weight, PackedWeight) and weight.product == "int8"
    if is_depthwise(weight.shape, options.get("groups", 1)) and not quantised:
        followed = any(options.get(name) is not None for name in ("channel_bias", "residual"))
        few = pair(options.get("stride", 1)) != (1, 1) or weight.shape[2:].numel() < 49
        depthwise = "bare, few taps" if few else f"bare {str(x.dtype).removeprefix('torch.')}"
        if followed or options.get("act", "none") != "none":
            depthwise = "fused"
    return {**weight_fact(weight), "depthwise": depthwise}


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    upsample = options.get("upsample", 1)
    size = out_size(
        (x.shape[2] * upsample, x.shape[3] * upsample),
        weight.shape[2:],
        pair(options.get("stride", 1)),
        pads_of(options.get("padding", 0)),
        pair(options.get("dilation", 1)),
    )
    pixels = x.shape[0] * size[0] * size[1]
    concat = options.get("concat")
    read = x.numel() + (0 if concat is None else concat.numel()) + weight.shape.numel()
    return 2.0 * pixels * weight.shape.numel(), float(read + pixels * weight.shape[0]) * x.element_size()


# Batch, channels in, channels out, size of 3x3 convolutions.
WORKLOADS = {
    "sd15_64px": (2, 320, 320, 64),
    "sd15_32px": (2, 640, 640, 32),
    "sd15_16px": (2, 1280, 1280, 16),
    "sd15_16px_up": (2, 2560, 1280, 16),
    "ddpm_32px": (2, 128, 128, 32),
    "ddpm_16px": (2, 256, 256, 16),
    "sd_vae_64px": (1, 512, 512, 64),
    "sd_vae_512px": (1, 128, 128, 512),
}

# Batch, channels, taps each way, size of depthwise convolutions.
DEPTHWISE = {
    "depthwise_3x3_64px": (2, 320, 3, 64),
    "depthwise_3x3_16px": (2, 1280, 3, 16),
    "depthwise_5x5_32px": (2, 640, 5, 32),
    "depthwise_7x7_64px": (2, 192, 7, 64),
}


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def nhwc(*shape: int) -> Tensor:
        return randn(*shape).contiguous(memory_format=torch.channels_last)

    def packed(out: int, C: int, kH: int, kW: int, groups: int = 1, **options: str) -> PackedWeight:
        weight = torch.randn((out, C, kH, kW), generator=g) / math.sqrt(C * kH * kW)
        weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
        return pack_conv2d(weight, groups=groups, **options)

    same = {"padding": 1}
    for C in (1, 3, 15, 16, 17, 32, 33, 64):
        yield Sample(
            f"in_{C}", (nhwc(2, C, 6, 7), packed(20, C, 3, 3), randn(20)), {"padding": 1}, batch_axis=0
        )
        yield Sample(f"out_{C}", (nhwc(2, 8, 5, 5), packed(C, 8, 3, 3)), {"padding": 1}, batch_axis=0)
    for k in ((1, 1), (1, 3), (5, 2), (7, 7)):
        yield Sample(f"kernel_{k[0]}x{k[1]}", (nhwc(2, 24, 9, 8), packed(17, 24, *k)), batch_axis=0)
    moved = {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}
    yield Sample("stride_dilation", (nhwc(2, 12, 11, 13), packed(16, 12, 3, 3)), moved, batch_axis=0)
    yield Sample("contiguous", (randn(2, 12, 6, 6), packed(9, 12, 3, 3)), {"padding": 1}, batch_axis=0)
    yield Sample("sliced", (nhwc(2, 24, 8, 9)[:, 4:20, ::2, 1:], packed(9, 16, 3, 3)), batch_axis=0)
    down = {"stride": 2, "padding": (0, 1, 0, 1)}
    yield Sample("downsample", (nhwc(2, 32, 8, 8), packed(32, 32, 3, 3), randn(32)), down, batch_axis=0)
    up = {"upsample": 2, "padding": 1}
    yield Sample("upsample", (nhwc(2, 32, 5, 4), packed(32, 32, 3, 3), randn(32)), up, batch_axis=0)
    both = {"concat": nhwc(2, 23, 6, 6), "padding": 1}
    yield Sample("concat", (nhwc(2, 41, 6, 6), packed(18, 64, 3, 3), randn(18)), both, batch_axis=0)
    for groups in (2, 5, 10):
        grouped = {"groups": groups, "padding": 1}
        yield Sample(
            f"groups_{groups}",
            (nhwc(2, 10, 6, 6), packed(20, 10 // groups, 3, 3, groups)),
            grouped,
            batch_axis=0,
        )
    rest = {"act": "silu", "channel_bias": randn(3, 40), "residual": nhwc(3, 40, 6, 6), "padding": 1}
    yield Sample("epilogue", (nhwc(3, 48, 6, 6), packed(40, 48, 3, 3), randn(40)), rest, batch_axis=0)
    yield Sample(
        "chunks", (nhwc(2, 130, 9, 9), packed(35, 130, 3, 3), randn(35)), {"padding": 1}, batch_axis=0
    )
    # Whole lines of channels: an image packed once, or Winograd's tiles.
    shifted: dict[str, tuple[int, ...]] = {"stride": (2, 1), "padding": (1, 2, 0, 3), "dilation": (1, 2)}
    yield Sample("lines_moved", (nhwc(2, 64, 11, 13), packed(40, 64, 3, 3)), shifted, batch_axis=0)
    yield Sample("lines_beyond", (nhwc(2, 32, 2, 3), packed(17, 32, 3, 3)), {"padding": 4}, batch_axis=0)
    both = {"concat": nhwc(2, 32, 7, 9), "padding": 1}
    yield Sample("lines_concat", (nhwc(2, 32, 7, 9), packed(33, 64, 3, 3), randn(33)), both, batch_axis=0)
    wide = {"stride": 2, "padding": 1, "act": "silu", "residual": nhwc(2, 40, 3, 19)}
    yield Sample("lines_wide", (nhwc(2, 64, 5, 37), packed(40, 64, 3, 3), randn(40)), wide, batch_axis=0)
    yield Sample("lines_1x1", (nhwc(2, 96, 5, 9), packed(40, 96, 1, 1), randn(40)), batch_axis=0)
    few = {"padding": 1, "act": "tanh", "channel_bias": randn(2, 1)}
    yield Sample("few_1", (nhwc(2, 16, 8, 12), packed(1, 16, 3, 3), randn(1)), few, batch_axis=0)
    yield Sample("few_3", (nhwc(2, 33, 6, 10), packed(3, 33, 5, 3)), {"padding": (2, 1)}, batch_axis=0)
    cut = {"padding": (0, 3, 2, 1), "act": "silu"}
    yield Sample("few_4", (nhwc(2, 32, 7, 9), packed(4, 32, 3, 3), randn(4)), cut, batch_axis=0)
    yield Sample("empty", (nhwc(0, 8, 6, 6), packed(8, 8, 3, 3)))
    whole = torch.randint(-4, 5, (2, 12, 7, 7), generator=g).to(device, dtype)
    weight = pack_conv2d(torch.randint(-1, 2, (6, 12, 3, 3), generator=g).to(device, dtype))
    yield Sample("integers", (whole, weight), {"padding": 1, "act": "relu"}, exact=dtype == torch.float32)
    whole = torch.randint(-4, 5, (2, 32, 9, 7), generator=g).to(device, dtype)
    weight = pack_conv2d(torch.randint(-1, 2, (6, 32, 3, 3), generator=g).to(device, dtype))
    yield Sample("lines_integers", (whole, weight), {"padding": 1}, exact=dtype == torch.float32)
    yield from conv_samples.depthwise(nhwc, packed, dtype)
    yield from conv_samples.int8(nhwc, packed)
    for name, (B, C, out, size) in WORKLOADS.items():
        yield Sample(name, (nhwc(B, C, size, size), packed(out, C, 3, 3), randn(out)), same, bench=True)
    for name, (B, C, taps, size) in DEPTHWISE.items():
        each = {"groups": C, "padding": taps // 2, "act": "silu"}
        yield Sample(name, (nhwc(B, C, size, size), packed(C, 1, taps, taps, C), randn(C)), each, bench=True)


@op(check=_check_conv2d, samples=_samples, dtypes=checks.FLOATS, facts=_facts, cost=_cost, tiled=True)
def conv2d(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    act: str = "none",
    slope: float = 0.01,
    channel_bias: Tensor | None = None,
    residual: Tensor | None = None,
    concat: Tensor | None = None,
    upsample: int = 1,
) -> Tensor:
    r"""Two-dimensional convolution (cross-correlation) with its neighbours in a UNet.

    .. math:: y = \operatorname{act}(W * \operatorname{up}([x\,|\,x']) + b + c) + r

    References:
        V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016,
        https://arxiv.org/abs/1603.07285
        O. Ronneberger, P. Fischer, T. Brox, "U-Net", 2015, https://arxiv.org/abs/1505.04597 (the skip)

    Args:
        x: (B, C, H, W) float32 or bfloat16; channels-last is read as it is, slices of it too.
        weight: (O, C / groups, kH, kW) in x's dtype, or `pack_conv2d` of it, which the native kernel needs.
        bias: b, (O,) in x's dtype, or None.
        stride, dilation: pixels; an int, or (rows, columns).
        padding: pixels of zeros; an int, (rows, columns), or (left, right, top, bottom).
        groups: divides C and O.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        channel_bias: c, (B, O): a time embedding's projection, or None.
        residual: r, y's shape, or None.
        concat: x', (B, C', H, W): further channels after x's, never copied together; groups must be 1.
        upsample: repeats each pixel so many times in both directions first (nearest); never stored.

    Returns:
        (B, O, H', W') in x's dtype; channels-last from the native kernel.

    Precision: as the weight was packed; sums and all that follows in float32, rounded once. A sample's bits
        don't depend on the other samples or on threads; they differ between ISA levels, but for int8. There
        the patch under an output pixel (of one group) is q s, s = max|x| / 127, q integers; its sums of
        integers are exact, and a NaN or an infinity in it gives NaN. True float32
        products of 3 x 3 taps at stride 1 are Winograd's, whose error is below a plain sum's (0.1 to 0.6 of
        PyTorch's); an infinity or NaN in x then makes all outputs of its tiles NaN.

    Memory: the result; blocks of x in tiles, at most three quarters of the L2 cache a thread; for Winograd's
        products the weight once more, 16 / 9 as large, made at the first call that needs it.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, or the weight was changed after it was packed.
    """
    if concat is not None:
        x = torch.cat([x, concat], dim=1)
    if upsample > 1:
        x = F.interpolate(x, scale_factor=float(upsample), mode="nearest")
    pads = pads_of(padding)
    symmetric = pads[0] == pads[1] and pads[2] == pads[3]
    quantised = isinstance(weight, PackedWeight) and weight.product == "int8"
    if not symmetric or quantised:
        x = F.pad(x, pads)
    if quantised:
        y = int8.patch_product(x, tensor_of(weight), pair(stride), pair(dilation), groups)
        y = y if bias is None else y + bias[:, None, None]
    else:
        w = tensor_of(weight).to(x.dtype)
        inner = (pads[2], pads[0]) if symmetric else 0
        y = F.conv2d(x, w, bias, pair(stride), inner, pair(dilation), groups)
        if channel_bias is None and residual is None:
            return ACTIVATIONS[act](y, slope)  # in float32 inside, rounded once
    wide = y.float() if y.dtype == torch.bfloat16 else y
    if channel_bias is not None:
        wide = wide + channel_bias[:, :, None, None]
    wide = ACTIVATIONS[act](wide, slope)
    if residual is not None:
        wide = wide + residual
    return wide.to(x.dtype)
