"""What the machine gives to the simplest loops: the ceilings that a benchmark is held against."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from aigc_engine import native
from aigc_engine.timing import BLOCK_SECONDS, FEWEST_ROUNDS, Timing, block, paired
from bench.case import Work

__all__ = ["Ceilings", "Timing", "bound_of", "ceilings", "loop_like", "paired"]

COPY_BYTES = tuple(2**k for k in (17, 20, 22, 24, 26, 28))
READ_BYTES = (2**15, *COPY_BYTES)
COPY, READ, FMA = "copy", "read", "fma_float32"


@dataclass(frozen=True)
class Ceilings:
    """What the machine gave to the simplest possible loops in the same run, on all threads at once.

    Args:
        copy: bytes touched (read + written) to GB/s of a float32 copy of that size, torch's.
        read: bytes to GB/s of reading them again and again and doing nothing with them.
        compute: GFLOP/s of arithmetic in registers, by loop, as the ISA level in use has them: fma_float32,
            dot_bfloat16, dot_int8, tile_bfloat16, tile_int8.
        matmul: float32 GFLOP/s of a 1024^3 matrix product, torch's.
    """

    copy: Mapping[int, float]
    read: Mapping[int, float]
    compute: Mapping[str, float]
    matmul: float

    def loop(self, arithmetic: torch.dtype | None) -> str:
        """The fastest loop for products in a dtype; float32 ones where the level has none of its own."""
        kind = str(arithmetic).removeprefix("torch.")
        own = [name for name in self.compute if name.endswith(f"_{kind}")]
        return max(own or [FMA], key=self.compute.__getitem__)


def ceilings(*, seconds: float = 0.25) -> Ceilings:
    """Measures the ceilings at torch's thread count, each for about so long."""
    copy = {size: size / _median(copy_of(size), seconds) / 1e9 for size in COPY_BYTES}
    data = torch.ones(READ_BYTES[-1] // 4)
    read = {size: _speed(READ, seconds, data[: size // 4]) for size in READ_BYTES}
    loops = {name: _speed(name, seconds) for name in native.CEILING_LOOPS if name != READ}
    a, b, c = torch.ones(1024, 1024), torch.ones(1024, 1024), torch.empty(1024, 1024)
    matmul = 2 * 1024**3 / _median(lambda: torch.mm(a, b, out=c), seconds) / 1e9
    return Ceilings(copy, read, {name: speed for name, speed in loops.items() if speed}, matmul)


def bound_of(work: Work, limits: Ceilings) -> str | None:
    """The ceiling that a job meets first: "copy", "read", or the compute loop of its arithmetic."""
    if not work.bytes:
        return None
    loop = limits.loop(work.arithmetic)
    memory = READ if work.reads else COPY
    rates = limits.read if work.reads else limits.copy
    nearest = min(rates, key=lambda size: abs(math.log(size / work.bytes)))
    return loop if work.flops / limits.compute[loop] > work.bytes / rates[nearest] else memory


def loop_like(work: Work, bound: str) -> Callable[[], Any]:
    """The loop of a ceiling over as many operations, or bytes, as the job has."""
    if bound == COPY:
        return copy_of(work.bytes)
    if bound == READ:
        data = torch.ones(max(16, round(work.bytes / 4)))
        return lambda: native.ceiling(READ, 1, data)
    rounds = max(1, round(work.flops / native.ceiling(bound, 1)))
    return lambda: native.ceiling(bound, rounds)


def copy_of(touched: float) -> Callable[[], Any]:
    """A float32 copy that reads and writes `touched` bytes together."""
    source = torch.ones(max(1, round(touched / 8)))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _speed(loop: str, seconds: float, data: torch.Tensor | None = None) -> float:
    """Of a native loop, in 1e9 a second; 0 where the ISA level lacks it."""
    if not native.ceiling(loop, 1, data):
        return 0.0
    rounds = 1
    with native.use_threads(1):  # on a busy machine several wait long for each other
        while min(block(partial(native.ceiling, loop, rounds, data), 1) for _ in range(3)) < BLOCK_SECONDS:
            rounds *= 2
    run = partial(native.ceiling, loop, rounds, data)
    return run() / _median(run, seconds) / 1e9


def _median(call: Callable[[], Any], seconds: float) -> float:
    call()
    calls = max(1, round(BLOCK_SECONDS / block(call, 1)))
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < FEWEST_ROUNDS or time.perf_counter() < until:
        found.append(block(call, calls))
    return statistics.median(found)
