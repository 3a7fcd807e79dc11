"""What a module's own Python asks of sizes while it's captured, and the answers for which the graph holds.

torch.export never takes a size for 1, so it answers `x.shape[0] == 1` without leaving a guard. Operators ask
the same of every size, but those are in the graph as they are and do what they do at 1; only the answers that
the module's Python got decided which operators there are.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

Answers = list[tuple[Any, bool]]  # of a symbolic bool's node
_answers: ContextVar[Answers | None] = ContextVar("aigc_engine_answers", default=None)
_as_bool = torch.SymBool.__bool__
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def answers_noted() -> Iterator[Answers]:
    """In this context, what Python outside of operators asks of sizes.

    PyTorch has no hook for it, so `torch.SymBool.__bool__` is another function meanwhile, which does for
    other threads what it did. One thread at a time: torch.export serves no two either.
    """
    found: Answers = []
    with _one_at_a_time:
        token = _answers.set(found)
        torch.SymBool.__bool__ = _noting
        try:
            yield found
        finally:
            torch.SymBool.__bool__ = _as_bool
            _answers.reset(token)


def _noting(asked: torch.SymBool) -> bool:
    answer = _as_bool(asked)
    found = _answers.get()
    if found is not None and not _inside_operator():
        found.append((asked.node, answer))
    return answer


def _inside_operator() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__torch_dispatch__":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def branches(answers: Answers) -> list[str]:
    """The same as Python over the graph's symbols: each is true where the module takes the captured way.

    To be asked once symbols that proved to be the same have one name.
    """
    from torch.utils._sympy.printers import PythonPrinter

    found: dict[str, None] = {}
    for node, answer in answers:
        symbols = [str(symbol) for symbol in node.expr.free_symbols]
        if symbols and not any(symbol.startswith("u") for symbol in symbols):  # u: made up, of no argument
            text = PythonPrinter().doprint(node.expr)
            found[text if answer else f"not ({text})"] = None
    return list(found)
