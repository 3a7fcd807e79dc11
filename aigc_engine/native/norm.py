"""Adapters of the native normalisation kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, dense, empty, empty_like, reshape


def _vector(value: Tensor | None) -> Tensor | None:
    return None if value is None else contiguous(value)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    silu: bool,
) -> Tensor:
    x, channels_last = dense(x)
    out = empty_like(x, dtype)
    if not x.numel():
        return out
    weight, bias = _vector(weight), _vector(bias)
    batch, channels = x.shape[:2]
    layout = batch, channels, x.numel() // (batch * channels), num_groups, channels_last
    workspace = empty((_native.group_norm_workspace(*layout),), torch.float32)
    _native.group_norm(
        x.data_ptr(),
        _address(weight),
        _address(bias),
        out.data_ptr(),
        workspace.data_ptr(),
        *layout,
        silu,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[out.dtype],
        eps,
        threads(),
    )
    return out


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return _group_norm(x, num_groups, weight, bias, eps, dtype, silu=False)


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return _group_norm(x, num_groups, weight, bias, eps, dtype, silu=True)


def _row_norm(
    kernel: Callable[..., Any],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    modulation: tuple[int, ...] = (),
) -> Tensor:
    out = empty_like(x, dtype)
    width = x.shape[-1]
    weight, bias = _vector(weight), _vector(bias)
    kernel(
        x.data_ptr(),
        _address(weight),
        _address(bias),
        out.data_ptr(),
        x.numel() // width,
        width,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[out.dtype],
        eps,
        threads(),
        modulation,
    )
    return out


def _per_sample(value: Tensor | None) -> Tensor | None:
    """(B, D) of a scale or shift; the rows may lie apart, as those cut out of one projection do."""
    if value is None:
        return None
    flat = reshape(value, (value.shape[0], value.shape[-1]))
    return flat if flat.stride(1) == 1 else contiguous(flat)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    x = contiguous(x)
    if (scale is None and shift is None) or not x.numel():
        return _row_norm(_native.layer_norm, x, weight, bias, eps, dtype)
    scale, shift = _per_sample(scale), _per_sample(shift)
    modulation = (
        _address(scale),
        0 if scale is None else scale.stride(0),
        _address(shift),
        0 if shift is None else shift.stride(0),
        x.numel() // (x.shape[0] * x.shape[-1]),
    )
    return _row_norm(_native.layer_norm, x, weight, bias, eps, dtype, modulation)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    return _row_norm(_native.rms_norm, contiguous(x), weight, None, eps, dtype)
