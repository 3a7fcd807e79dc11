"""What a benchmark is: two ways to do one job, and the proof that both do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Work:
    """A job, built and ready to be timed.

    Args:
        ours, theirs: do the job once; what they return is ignored by the timing.
        verify: compares both results, raises when they differ too much, returns the max absolute difference.
        flops, bytes: of one call, by the definition of the job; 0 where that says nothing.
        arithmetic: what its products are in; None is float32.
        reads: it hardly writes, so that reading bounds it and not copying.
        items, unit: what one call makes, for example 64 images.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    verify: Callable[[], float]
    flops: float = 0.0
    bytes: float = 0.0
    arithmetic: torch.dtype | None = None
    reads: bool = False
    items: float = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Case:
    """A named benchmark; `build` makes its inputs, so that listing cases costs nothing.

    Args:
        group: the file it's from: ops, int8, network, step, diffusion, text, gan, vae.
        name: unique in its group.
        against: what `theirs` is, for the table.
        target: the ratio that the project promises, or None.
        seconds: how long to time it.
        family: what a geometric mean is taken over, for example an op in a dtype; "" is none.
    """

    group: str
    name: str
    against: str
    build: Callable[[], Work]
    target: float | None = None
    seconds: float = 4.0
    family: str = ""


class Mismatch(AssertionError):
    """The two sides of a benchmark don't do the same job, so nothing was timed."""


def require(case: str, error: float, bound: float) -> float:
    """The error, if it's within the bound."""
    if not error <= bound:
        raise Mismatch(
            f"{case}: max abs difference {error:.3e}, expected at most {bound:.1e}; nothing was timed"
        )
    return error
