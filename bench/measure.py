"""What the machine gives to the simplest loops: the ceilings that a benchmark is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aigc_engine.timing import BLOCK_SECONDS, FEWEST_ROUNDS, Timing, block, paired

__all__ = ["Ceilings", "Timing", "ceilings", "copy_of", "paired"]

CEILING_BYTES = tuple(2**k for k in (17, 20, 22, 24, 26, 28))


def copy_of(touched: float) -> Callable[[], Any]:
    """A float32 copy that reads and writes `touched` bytes together."""
    source = torch.ones(max(1, round(touched / 8)))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


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
    calls = max(1, round(BLOCK_SECONDS / block(call, 1)))
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < FEWEST_ROUNDS or time.perf_counter() < until:
        found.append(block(call, calls))
    return statistics.median(found)
