"""Where the adapters' results, workspaces and copies are: fresh tensors, or what a plan being made says.

An adapter takes all its memory here and makes all its copies here, so that a plan can record it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from aigc_engine.native import on_huge_pages

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Memory(Protocol):
    """Gives out memory and notes copies instead of making them."""

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor whose values don't matter."""

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Writes source to target, of the same shape, when the plan runs."""


_planned: ContextVar[Memory | None] = ContextVar("aigc_engine_memory", default=None)


@contextlib.contextmanager
def use_memory(memory: Memory) -> Iterator[None]:
    """In this context adapters take their memory from `memory`."""
    token = _planned.set(memory)
    try:
        yield
    finally:
        _planned.reset(token)


def empty(
    shape: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """An uninitialised tensor on the CPU."""
    memory = _planned.get()
    if memory is None:
        return on_huge_pages(torch.empty(shape, dtype=dtype, memory_format=memory_format))
    stride = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return memory.empty(shape, stride, dtype)


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of x's shape whose axes lie in the order of x's."""
    memory = _planned.get()
    if memory is None:
        return on_huge_pages(torch.empty_like(x, dtype=dtype))
    stride = torch.empty_like(x, device="meta").stride()
    return memory.empty(x.shape, stride, dtype or x.dtype)


def contiguous(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """x in that layout, copied only where it isn't."""
    memory = _planned.get()
    if memory is None or x.is_contiguous(memory_format=memory_format):
        return x.contiguous(memory_format=memory_format)
    out = empty(x.shape, x.dtype, memory_format)
    memory.copy(x, out)
    return out


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x in that shape, copied only where its strides leave no other way."""
    if _planned.get() is None:
        return x.reshape(shape)
    try:
        return x.view(shape)
    except RuntimeError:
        return contiguous(x).view(shape)


def store(source: Tensor, target: Tensor) -> Tensor:
    """target, with source's values."""
    memory = _planned.get()
    if memory is None:
        return target.copy_(source)
    memory.copy(source, target)
    return target


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """x without gaps, and whether it's channels-last.

    Copied where it has gaps, into the layout that its strides lean to: that of PyTorch's results.
    """
    if x.is_contiguous():
        return x, False
    if x.ndim == 3 and _planned.get() is not None and x.transpose(1, 2).is_contiguous():
        return x, True  # a plan's layouts are its own; PyTorch's result would be contiguous
    layout = CHANNELS_LAST.get(x.ndim)
    if layout is not None:
        batch, channel, *space = x.stride()
        if 0 < channel < min(space) and (x.shape[0] == 1 or batch >= max(space)):
            return contiguous(x, layout), True
    return contiguous(x), False
