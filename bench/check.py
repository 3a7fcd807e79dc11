"""How far two results are apart."""

from __future__ import annotations

from torch import Tensor


def max_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when the shapes differ."""
    return (a.double() - b.double()).abs().max().item() if a.shape == b.shape else float("inf")
