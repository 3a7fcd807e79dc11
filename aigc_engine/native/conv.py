"""Adapters of the native convolution kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_engine import _native, joint
from aigc_engine.geometry import (
    PANEL,
    ends_of,
    is_depthwise,
    out_length,
    out_size,
    pads_of,
    pair,
    taps_of,
    transposed_length,
    transposed_size,
)
from aigc_engine.joint import Joint
from aigc_engine.native import threads
from aigc_engine.native.linear import epilogue, scale
from aigc_engine.native.memory import contiguous, empty
from aigc_engine.native.packing import PRODUCT_CODES, packed_bytes
from aigc_engine.native.pointwise import run
from aigc_engine.packed import PackedWeight


def as_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) whose channels are contiguous, copied only where they aren't."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else contiguous(x, torch.channels_last)


def _pixels(like: Tensor, *shape: int) -> Tensor:
    return empty(shape, like.dtype, torch.channels_last)


def _input(x: Tensor) -> list[int]:
    return [x.data_ptr(), x.shape[1], x.stride(0), x.stride(2), x.stride(3)]


def finishing(
    out: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    *,
    channel_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Any, list[Tensor]]:
    """The epilogue of a channels-last result, and the tensors that must outlive the call."""
    columns = out.shape[1]
    kept = []
    if bias is not None:
        kept.append(bias := contiguous(bias))
    e = epilogue(out, columns, bias, act, slope)
    if channel_bias is not None:
        if channel_bias.stride(1) != 1:
            kept.append(channel_bias := contiguous(channel_bias))
        e.set_sample_bias(channel_bias.data_ptr(), channel_bias.stride(0))
    if residual is not None:
        kept.append(residual := contiguous(residual, torch.channels_last))
        e.set_residual(residual.data_ptr(), columns)
    return e, kept


def saves_products(
    weight: PackedWeight, size: tuple[int, int], pads: tuple[int, ...], channels: list[int]
) -> bool:
    """Whether Winograd's 16 products for 4 outputs are clearly fewer than those of all taps inside the image.

    Depends on nothing but one image's geometry, so that a batch changes no bit.
    """
    if weight.product != "float32" or tuple(weight.shape[-2:]) != (3, 3) or any(c % PANEL for c in channels):
        return False
    left, right, top, bottom = pads
    inside = (3 * size[0] - top - bottom) * (3 * size[1] - left - right)
    return inside > 1.25 * 16 * -(-size[0] // 2) * -(-size[1] // 2)


def _kernel(weight: PackedWeight) -> Callable[..., None]:
    """Of a weight as `pack_taps` of aigc_engine/ops/packing.py laid it out."""
    depthwise = weight.product != "int8" and is_depthwise(weight.shape, weight.groups)
    return _native.depthwise if depthwise else _native.conv


def run_kernel(
    kernel: Callable[..., None],
    inputs: Sequence[Tensor],
    tiles: int,
    product: str,
    e: Any,
    *,
    size: tuple[int, int],
    out_size: tuple[int, int],
    taps: Sequence[int],
    padding: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    upsample: int = 1,
    groups: int = 1,
    place: tuple[int, int, int, int] | None = None,
) -> None:
    """Calls a convolution kernel.

    Args:
        inputs: (B, C, H, W) as pixels, whose channels follow each other.
        tiles: address of the weight's, for this product.
        size: of the enlarged input; padding is above and left.
        place: in pixels of the result, where the first output goes, and steps of sample, row and column;
            None: they fill it.
    """
    kernel(
        inputs=[_input(value) for value in inputs],
        weight=tiles,
        size=(inputs[0].shape[0], *size),
        out_size=out_size,
        taps=tuple(taps),
        stride=stride,
        dilation=dilation,
        padding=padding,
        upsample=upsample,
        groups=groups,
        place=place or (0, out_size[0] * out_size[1], out_size[1], 1),
        product=PRODUCT_CODES[product],
        epilogue=e,
        threads=threads(),
    )


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
    assert isinstance(weight, PackedWeight) and weight.data is not None
    B, _, H, W = x.shape
    taps, pads = weight.shape[2:], pads_of(padding)
    strides, dilations = pair(stride), pair(dilation)
    H, W = H * upsample, W * upsample
    size = out_size((H, W), taps, strides, pads, dilations)
    out = _pixels(x, B, weight.shape[0], *size)
    if not out.numel():
        return out
    inputs = [as_pixels(x), *([] if concat is None else [as_pixels(concat)])]
    plain = strides == dilations == (1, 1) and groups == 1
    if plain and residual is None and concat is None and upsample == 1 and weight.product != "int8":
        blocks = joint.of_conv(taps, (pads[2], pads[0]), size, weight.shape[0])
        if blocks is not None:
            return _by_blocks(inputs[0], weight, blocks, out, bias, act, slope, channel_bias)
    e, _kept = finishing(out, bias, act, slope, channel_bias=channel_bias, residual=residual)
    scale(e, weight)
    winograd = plain and saves_products(weight, size, pads, [value.shape[1] for value in inputs])
    kernel, tiles = (_native.winograd, weight.winograd) if winograd else (_kernel(weight), weight.data)
    run_kernel(
        kernel,
        inputs,
        tiles.data_ptr(),
        weight.product,
        e,
        size=(H, W),
        out_size=size,
        taps=taps,
        padding=(pads[2], pads[0]),
        stride=strides,
        dilation=dilations,
        upsample=upsample,
        groups=groups,
    )
    return out


def _by_blocks(
    x: Tensor,
    weight: PackedWeight,
    blocks: Joint,
    out: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    channel_bias: Tensor | None = None,
) -> Tensor:
    """Few channels, a block of outputs at a time, which is then spread over its pixels."""
    (B, C, H, W), (height, width) = out.shape, blocks.block
    columns, size = height * width * C, (H // height, W // width)
    sums = _pixels(x, B, columns, *size)
    if bias is not None:
        bias = contiguous(bias.expand(height * width, C)).flatten()
    if channel_bias is not None:
        channel_bias = contiguous(channel_bias[:, None].expand(B, height * width, C)).flatten(1)
    e, _kept = finishing(sums, bias, act, slope, channel_bias=channel_bias)
    run_kernel(
        _native.conv,
        [x],
        weight.joined(blocks).data_ptr(),
        weight.product,
        e,
        size=(x.shape[2], x.shape[3]),
        out_size=size,
        taps=(blocks.rows.taps, blocks.columns.taps),
        padding=(blocks.rows.padding, blocks.columns.padding),
        stride=(blocks.rows.stride, blocks.columns.stride),
    )
    source = sums.permute(0, 2, 3, 1).view(B, *size, height, width, C)
    target = out.permute(0, 2, 3, 1).view(B, size[0], height, size[1], width, C).transpose(2, 3)
    run([], target, source)
    return out


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
    assert isinstance(weight, PackedWeight) and weight.data is not None
    (B, _, L), taps = x.shape, weight.shape[2]
    length = out_length(L, taps, stride, padding, dilation)
    out = _pixels(x, B, weight.shape[0], 1, length)
    if not out.numel():
        return out[:, :, 0]
    row = as_pixels(x[:, :, None])
    if stride == dilation == groups == 1 and residual is None:
        blocks = joint.of_conv((1, taps), (0, ends_of(padding)[0]), (1, length), weight.shape[0])
        if blocks is not None:
            return _by_blocks(row, weight, blocks, out, bias, act, slope)[:, :, 0]
    residual = None if residual is None else residual[:, :, None]
    e, _kept = finishing(out, bias, act, slope, residual=residual)
    run_kernel(
        _kernel(weight),
        [row],
        weight.data.data_ptr(),
        weight.product,
        e,
        size=(1, L),
        out_size=(1, length),
        taps=(1, taps),
        padding=(0, ends_of(padding)[0]),
        stride=(1, stride),
        dilation=(1, dilation),
        groups=groups,
    )
    return out[:, :, 0]


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
    assert isinstance(weight, PackedWeight)
    size = transposed_size(x.shape[2:], weight.shape[2:], stride, padding, output_padding)
    out = _pixels(x, x.shape[0], weight.shape[1], *size)
    if out.numel():
        taps, strides = tuple(weight.shape[2:]), weight.stride
        blocks = joint.of_transposed(taps, strides, pair(padding), size, weight.shape[1])
        if blocks is not None and residual is None:
            return _by_blocks(as_pixels(x), weight, blocks, out, bias, act, slope)
        e, _kept = finishing(out, bias, act, slope, residual=residual)
        if tuple(x.shape[2:]) == (1, 1):  # each output is one tap's, and else one of many that are outside
            _transposed(as_pixels(x), weight, weight.by_taps, taps, taps, pair(padding), size, e)
        else:
            _transposed(as_pixels(x), weight, weight.data, taps, strides, pair(padding), size, e)
    return out


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
    assert isinstance(weight, PackedWeight)
    taps = (1, weight.shape[2])
    size = (1, transposed_length(x.shape[2], taps[1], stride, padding, output_padding))
    out = _pixels(x, x.shape[0], weight.shape[1], *size)
    if out.numel():
        residual = None if residual is None else residual[:, :, None]
        e, _kept = finishing(out, bias, act, slope, residual=residual)
        pixels = as_pixels(x[:, :, None])
        _transposed(pixels, weight, weight.data, taps, (1, stride), (0, padding), size, e)
    return out[:, :, 0]


def _transposed(
    x: Tensor,
    weight: PackedWeight,
    tiles: Tensor | None,
    taps: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, int],
    size: tuple[int, int],
    e: Any,
) -> None:
    """A transposed convolution of x (B, C, H, W) as an ordinary one for each remainder of the stride.

    Args:
        tiles: the weight's, packed for these strides.
    """
    assert tiles is not None
    offsets = _phase_offsets(weight, taps, strides)
    for y in range(min(strides[0], size[0])):
        for z in range(min(strides[1], size[1])):
            # Outputs y, y + stride, ...: an ordinary convolution of the taps of their remainder.
            first, remainder = (
                ((y + pads[0]) // strides[0], (z + pads[1]) // strides[1]),
                ((y + pads[0]) % strides[0], (z + pads[1]) % strides[1]),
            )
            reach = [len(taps_of(k, s, r)) or 1 for k, s, r in zip(taps, strides, remainder, strict=True)]
            run_kernel(
                _native.conv,
                [x],
                tiles.data_ptr() + offsets[remainder[0] * strides[1] + remainder[1]],
                weight.product,
                e,
                size=(x.shape[2], x.shape[3]),
                out_size=(-(-(size[0] - y) // strides[0]), -(-(size[1] - z) // strides[1])),
                taps=reach,
                padding=(reach[0] - 1 - first[0], reach[1] - 1 - first[1]),
                place=(y * size[1] + z, size[0] * size[1], strides[0] * size[1], strides[1]),
            )


def _phase_offsets(weight: PackedWeight, taps: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Bytes before each remainder's matrix, in the order of `ops.conv_transpose.phases`."""
    offsets, total = [], 0
    for y in range(strides[0]):
        for x in range(strides[1]):
            offsets.append(total)
            reach = len(taps_of(taps[0], strides[0], y)) * len(taps_of(taps[1], strides[1], x))
            total += packed_bytes(weight.shape[1], weight.shape[0] * max(reach, 1), weight.product)
    return offsets
