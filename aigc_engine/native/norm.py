"""Adapters of the native normalisation kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, dense, on_huge_pages, threads


def _vector(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> Tensor:
    x, channels_last = dense(x)
    out = on_huge_pages(torch.empty_like(x))
    if not x.numel():
        return out
    weight, bias = _vector(weight), _vector(bias)
    batch, channels = x.shape[:2]
    layout = batch, channels, x.numel() // (batch * channels), num_groups, channels_last
    workspace = torch.empty(_native.group_norm_workspace(*layout), dtype=torch.float32)
    _native.group_norm(
        x.data_ptr(),
        _address(weight),
        _address(bias),
        out.data_ptr(),
        workspace.data_ptr(),
        *layout,
        silu,
        DTYPE_CODES[x.dtype],
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
) -> Tensor:
    return _group_norm(x, num_groups, weight, bias, eps, silu=False)


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    return _group_norm(x, num_groups, weight, bias, eps, silu=True)


def _row_norm(
    kernel: Callable[..., Any], x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    x = x.contiguous()
    out = on_huge_pages(torch.empty_like(x))
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
        eps,
        threads(),
    )
    return out


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    return _row_norm(_native.layer_norm, x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    return _row_norm(_native.rms_norm, x, weight, None, eps)
