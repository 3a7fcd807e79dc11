"""Paired timing on a machine that's never quiet.

Two callables are timed in turn, block by block (ours, theirs, theirs, ours, ...), so that a slow phase of
machine hits both. Reported are medians, their ratio and the median of the neighbours' ratios, never a mean.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

BLOCK_SECONDS = 2e-3
FEWEST_ROUNDS, MOST_ROUNDS = 5, 400
CEILING_BYTES = tuple(2**k for k in (17, 20, 22, 24, 26, 28))


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both sides, one entry per round; `ceiling` is a copy of as many bytes, or empty."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ceiling: tuple[float, ...]
    calls: int

    @cached_property
    def our_median(self) -> float:
        return statistics.median(self.ours)

    @cached_property
    def their_median(self) -> float:
        return statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the ratio of the medians."""
        return self.their_median / self.our_median

    @property
    def paired_ratio(self) -> float:
        """The median of the ratios within the rounds; far from `ratio` when the machine was unsteady."""
        return statistics.median(t / o for o, t in zip(self.ours, self.theirs, strict=True))

    @property
    def share_of_ceiling(self) -> float | None:
        """The copy's time over ours: 1 is as fast as a copy of the same number of bytes."""
        return statistics.median(self.ceiling) / self.our_median if self.ceiling else None


def paired(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    touched: float = 0.0,
    seconds: float = 4.0,
    fewest: int = FEWEST_ROUNDS,
) -> Timing:
    """Times two callables in turn, after a warm-up of each.

    Args:
        ours, theirs: called without arguments; short ones are called several times per round, equally often.
        touched: bytes one call reads and writes; a copy of as many takes turns with them. 0: no copy.
        seconds: how long to go on; `fewest` rounds are made in any case.
    """
    sides = [ours, theirs, *([copy_of(touched)] if touched else [])]
    fastest = min(_block(call, 1) for _ in range(2) for call in (ours, theirs))
    calls = max(1, round(BLOCK_SECONDS / fastest))
    found: list[list[float]] = [[] for _ in sides]
    until = time.perf_counter() + seconds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while len(found[0]) < fewest or (time.perf_counter() < until and len(found[0]) < MOST_ROUNDS):
            forth = list(zip(found, sides, strict=True))
            for times, call in forth if len(found[0]) % 2 == 0 else reversed(forth):
                times.append(_block(call, calls))
    finally:
        if collecting:
            gc.enable()
    return Timing(tuple(found[0]), tuple(found[1]), tuple(found[2]) if touched else (), calls)


def copy_of(touched: float) -> Callable[[], Any]:
    """A float32 copy that reads and writes `touched` bytes together."""
    source = torch.ones(max(1, round(touched / 8)))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _block(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Ceilings:
    """What the machine gave to the simplest possible loops in the same run.

    Args:
        copy: bytes touched (read + written) to GB/s of a float32 copy of that size.
        gflops: float32 GFLOP/s of a 1024^3 matrix product.
    """

    copy: dict[int, float]
    gflops: float


def ceilings(*, seconds: float = 0.4) -> Ceilings:
    """Measures the ceilings with torch's own copy and matrix product, at torch's thread count."""
    copy = {size: size / _median(copy_of(size), seconds) / 1e9 for size in CEILING_BYTES}
    a, b, c = torch.ones(1024, 1024), torch.ones(1024, 1024), torch.empty(1024, 1024)
    return Ceilings(copy, 2 * 1024**3 / _median(lambda: torch.mm(a, b, out=c), seconds) / 1e9)


def _median(call: Callable[[], Any], seconds: float) -> float:
    call()
    calls = max(1, round(BLOCK_SECONDS / _block(call, 1)))
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < FEWEST_ROUNDS or time.perf_counter() < until:
        found.append(_block(call, calls))
    return statistics.median(found)
