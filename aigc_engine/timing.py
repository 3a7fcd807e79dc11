"""Paired timing on a machine that's never quiet.

Two callables are timed in turn, block by block (ours, theirs, theirs, ours, ...), so that a slow phase of
the machine hits both. Reported are medians, their ratio and the median of neighbours' ratios, never a mean.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BLOCK_SECONDS = 2e-3
LONG = 0.1  # seconds; from here on one warm-up call says enough
FEWEST_ROUNDS, MOST_ROUNDS = 5, 400


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both sides, one entry per round; `ceiling` is that of a bound, or empty."""

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
        """The bound's time over ours: 1 is as fast as it."""
        return statistics.median(self.ceiling) / self.our_median if self.ceiling else None


def paired(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    ceiling: Callable[[], Any] | None = None,
    seconds: float = 4.0,
    fewest: int = FEWEST_ROUNDS,
) -> Timing:
    """Times two callables in turn, after a warm-up of each.

    Args:
        ours, theirs: called without arguments; short ones are called several times per round, equally often.
        ceiling: something that bounds ours, such as a copy of as many bytes; it takes turns with them.
        seconds: how long to go on; `fewest` rounds are made in any case.
    """
    sides = [ours, theirs, *([ceiling] if ceiling else [])]
    fastest = min(block(ours, 1), block(theirs, 1))
    if fastest < LONG:
        fastest = min(fastest, block(ours, 1), block(theirs, 1))
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
                times.append(block(call, calls))
    finally:
        if collecting:
            gc.enable()
    return Timing(tuple(found[0]), tuple(found[1]), tuple(found[2]) if ceiling else (), calls)


def block(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call, of `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls
