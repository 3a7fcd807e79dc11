"""Adapter of the native resize kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, empty


def resize2d(x: Tensor, size: Sequence[int], *, mode: str = "nearest", align_corners: bool = False) -> Tensor:
    layout = torch.channels_last if dense_in_channels(x) else torch.contiguous_format
    out = empty((*x.shape[:2], *size), x.dtype, layout)
    return resize_into(out, x, mode=mode, align_corners=align_corners)


def dense_in_channels(x: Tensor) -> bool:
    """Whether the channels of x (B, C, H, W) are what lies next to each other."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) != 1


def resize_into(out: Tensor, x: Tensor, *, mode: str = "nearest", align_corners: bool = False) -> Tensor:
    """Writes into `out` (B, C, H', W'), whose channels or whose columns are contiguous; not part of x.

    Raises:
        ValueError: neither are.
    """
    if dense_in_channels(out):
        x = x if x.stride(1) == 1 else contiguous(x, torch.channels_last)
    elif out.stride(3) == 1 or out.shape[3] == 1:
        x = x if x.stride(3) == 1 or x.shape[3] == 1 else contiguous(x)
    else:
        raise ValueError(f"resize2d: out strides {out.stride()}, expected contiguous channels or columns")
    _native.resize(
        x.data_ptr(),
        tuple(x.shape),
        x.stride(),
        out.data_ptr(),
        tuple(out.shape),
        out.stride(),
        mode == "bilinear",
        align_corners,
        DTYPE_CODES[x.dtype],
        threads(),
    )
    return out
