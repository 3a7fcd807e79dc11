"""Adapters of the native pointwise kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import empty, empty_like
from aigc_engine.ops.pointwise import Step, result_dtype


def _view(x: Tensor) -> tuple[int, torch.Size, tuple[int, ...], int]:
    return x.data_ptr(), x.shape, x.stride(), DTYPE_CODES[x.dtype]


def run(program: Sequence[Step], out: Tensor, *tensors: Tensor) -> Tensor:
    """Writes a program's result into `out`, a view of any strides, as a concatenation's slices are.

    Raises:
        ValueError: tensors that don't broadcast to out's shape; out shares memory with itself, or with a
            tensor that isn't the same view.
    """
    _native.pointwise(program, _view(out), [_view(value) for value in tensors], threads())
    return out


def pointwise(
    program: Sequence[Step],
    *tensors: Tensor,
    out_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    x, dtype = tensors[0], out_dtype or result_dtype(tensors)
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    if memory_format == torch.preserve_format and x.shape == shape:
        out = empty_like(x, dtype)
    elif memory_format == torch.preserve_format:
        out = empty(shape, dtype)
    else:
        out = empty(shape, dtype, memory_format)
    return run(program, out, *tensors)


_native.learn_results(
    torch.empty_like,
    torch.empty,
    torch.float32,
    torch.bfloat16,
    torch.preserve_format,
    torch.contiguous_format,
    torch.channels_last,
)
