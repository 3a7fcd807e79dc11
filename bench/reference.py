"""Running a job as plain PyTorch would: the same modules, every op on its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from aigc_engine import use_backend

T = TypeVar("T")


def on_reference(job: Callable[[], T]) -> Callable[[], T]:
    """The job with every op on its PyTorch reference."""

    def run() -> T:
        with use_backend("reference"):
            return job()

    return run


def max_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when the shapes differ."""
    return (a.double() - b.double()).abs().max().item() if a.shape == b.shape else float("inf")
