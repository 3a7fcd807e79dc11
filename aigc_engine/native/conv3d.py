"""Adapter of conv3d to the kernel of two dimensions.

Where a pixel's frames follow each other in memory, kT neighbouring ones are kT C channels of one pixel: so
each frame of the result is an image, and the weight one of kT C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.geometry import ends_of_volume, out_volume, triple
from aigc_engine.native.conv import finishing, run_kernel, saves_products
from aigc_engine.native.memory import contiguous, empty
from aigc_engine.native.pointwise import run
from aigc_engine.packed import PackedWeight

ZEROS = (("where", 0.0, 0, 0.0),)


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
    assert isinstance(weight, PackedWeight) and weight.data is not None
    strides, (*pads, before, after) = triple(stride), ends_of_volume(padding)
    taps = tuple(weight.shape[2:])
    size = out_volume(x.shape[2:], taps, strides, (*pads, before, after))
    out = empty((x.shape[0], weight.shape[0], *size), x.dtype, torch.channels_last_3d)
    if not out.numel():
        return out
    if residual is not None:
        residual = contiguous(residual, torch.channels_last_3d).transpose(1, 2)
    windows = _windows(x, taps[0], strides[0], before, after)
    channels = [windows.shape[2]]
    winograd = strides[1:] == (1, 1) and saves_products(weight, size[1:], tuple(pads), channels)
    kernel, tiles = (_native.winograd, weight.winograd) if winograd else (_native.conv, weight.data)
    for b, images in enumerate(out.transpose(1, 2)):
        e, _kept = finishing(images, bias, act, slope, residual=None if residual is None else residual[b])
        run_kernel(
            kernel,
            [windows[b]],
            tiles.data_ptr(),
            weight.product,
            e,
            size=(x.shape[3], x.shape[4]),
            out_size=size[1:],
            taps=taps[1:],
            padding=(pads[2], pads[0]),
            stride=strides[1:],
        )
    return out


def _windows(x: Tensor, taps: int, stride: int, before: int, after: int) -> Tensor:
    """(B, T', taps C, H, W): the frames under each frame of the result, which share memory."""
    (B, C, T, H, W), length = x.shape, x.shape[2] + before + after
    if taps == 1 and length == T:
        x = x if x.stride(1) == 1 or C == 1 else contiguous(x, torch.channels_last_3d)
        return x[:, :, ::stride].transpose(1, 2)
    frames = empty((B, H, W, length, C), x.dtype)
    run([], frames[:, :, :, before : before + T], x.permute(0, 3, 4, 2, 1))
    for beside in (frames[:, :, :, :before], frames[:, :, :, before + T :]):
        if beside.numel():
            run(ZEROS, beside, beside)
    shape = (B, (length - taps) // stride + 1, taps * C, H, W)
    batch, row, column, frame, _ = frames.stride()
    return frames.as_strided(shape, (batch, stride * frame, 1, row, column))
