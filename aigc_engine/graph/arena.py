"""One block of memory for all of a plan's values: who lives when, and where each then lies.

Lowering runs twice. The first time every value gets memory of its own that nobody touches, and Python's
reference counts say how long it's needed; the second time values are cut out of the arena.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # a cache line, and AVX-512's widest load


class _Block(np.ndarray):
    """An array that can be weakly referenced; torch keeps it while a tensor lies in it."""


@dataclass
class Lifetimes:
    """Sizes in bytes of the values in order of birth, and each one's birth and death on a common clock."""

    sizes: list[int] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    deaths: list[int | None] = field(default_factory=list)
    clock: int = 0
    _held: set[int] = field(default_factory=set)
    _alive: dict[int, int] = field(default_factory=dict)  # address to index

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A value in memory of its own, whose birth and death are noted."""
        index, size = len(self.sizes), _extent(shape, stride) * dtype.itemsize
        self.sizes.append(_aligned(size))
        self.births.append(self._tick())
        self.deaths.append(None)
        block = np.empty(_aligned(size), np.uint8).view(_Block)
        address = block.ctypes.data
        self._alive[address] = index
        weakref.finalize(block, self._died, index, address)
        return torch.frombuffer(block, dtype=dtype).as_strided(shape, stride)

    def _died(self, index: int, address: int) -> None:
        del self._alive[address]
        if index not in self._held:
            self.deaths[index] = self._tick()

    def hold(self, value: Tensor) -> None:
        """Gives a value memory of its own from one run to the next."""
        index = self._alive.get(value.untyped_storage().data_ptr())
        if index is not None:  # else it isn't the arena's
            self._held.add(index)
            self.births[index] = 0


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _aligned(size: int) -> int:
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT


def assign(lifetimes: Lifetimes) -> tuple[list[int], int]:
    """Offsets at which no two values that live at once overlap, and the bytes that they span.

    Greedy, the largest first, each in the smallest gap that it fits.

    References:
        Y. Pisarchyk, J. Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
        https://arxiv.org/abs/2001.03288 (greedy by size)
    """
    sizes = np.array(lifetimes.sizes, np.int64)
    births = np.array(lifetimes.births, np.int64)
    deaths = np.array([lifetimes.clock + 1 if d is None else d for d in lifetimes.deaths], np.int64)
    offsets = np.zeros(len(sizes), np.int64)
    placed = np.zeros(len(sizes), bool)
    for index in np.argsort(-sizes, kind="stable"):
        beside = np.flatnonzero(placed & (births < deaths[index]) & (deaths > births[index]))
        offsets[index] = _smallest_gap(offsets[beside], sizes[beside], sizes[index])
        placed[index] = True
    return offsets.tolist(), int((offsets + sizes).max(initial=0))


def _smallest_gap(offsets: np.ndarray, sizes: np.ndarray, size: int) -> int:
    order = np.argsort(offsets, kind="stable")
    ends = np.maximum.accumulate(np.concatenate([[0], (offsets + sizes)[order]]))
    gaps = offsets[order] - ends[:-1]
    fits = np.flatnonzero(gaps >= size)
    return int(ends[fits[np.argmin(gaps[fits])]] if len(fits) else ends[-1])


class Arena:
    """Gives out the values of a second, equal lowering at their offsets.

    Args:
        lifetimes: of the first one.
    """

    def __init__(self, lifetimes: Lifetimes) -> None:
        self._sizes = lifetimes.sizes
        self._offsets, self.peak = assign(lifetimes)
        self.total = sum(lifetimes.sizes)
        self._next = 0
        self.memory = torch.empty(self.peak + ALIGNMENT, dtype=torch.uint8)
        from aigc_engine.native import on_huge_pages

        on_huge_pages(self.memory)
        self._start = -self.memory.data_ptr() % ALIGNMENT

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next value."""
        size, index = _aligned(_extent(shape, stride) * dtype.itemsize), self._next
        if index == len(self._sizes) or self._sizes[index] != size:
            raise AssertionError("the second lowering asks for other memory than the first")
        self._next += 1
        first = self._start + self._offsets[index]
        return self.memory[first : first + size].view(dtype).as_strided(shape, stride)
