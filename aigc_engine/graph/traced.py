"""What is known of a graph's values before their sizes are."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor

Size = int | str  # a number, or Python over the symbols that stand for the arguments' sizes


@dataclass(frozen=True)
class Traced:
    """A tensor of a graph: dtype, and shape and strides as far as they're known."""

    dtype: torch.dtype
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)


def expression(size: Any) -> Any:
    """The sympy expression behind a SymInt; ints as they are."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def traced(value: Tensor) -> Traced:
    """What is known of a fake tensor."""
    sizes, strides = (tuple(map(source, found)) for found in (value.shape, value.stride()))
    return Traced(value.dtype, sizes, strides)


def source(size: Any) -> Size:
    """A size as a number or as Python."""
    from torch.utils._sympy.printers import PythonPrinter

    found = expression(size)
    return found if isinstance(found, int) else PythonPrinter().doprint(found)


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    return compile(text, "<size>", "eval")


def evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    """A size for these values of the symbols."""
    if isinstance(size, int):
        return size
    return int(eval(_compiled(size), {"math": math, "torch": torch}, dict(symbols)))
