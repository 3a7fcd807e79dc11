"""Adapter of the native embedding kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import threads
from aigc_engine.native.memory import contiguous, empty


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    indices = contiguous(indices)
    rows, width = weight.shape
    if weight.stride(1) != 1 and width > 1:
        weight = contiguous(weight)
    out = empty((*indices.shape, width), weight.dtype)
    size = weight.element_size()
    _native.embedding(
        indices.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        indices.numel(),
        rows,
        width * size,
        weight.stride(0) * size,
        indices.dtype == torch.int64,
        threads(),
    )
    return out
