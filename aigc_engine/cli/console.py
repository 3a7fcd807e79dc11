"""Where the commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["errors", "escape", "options", "out", "progress", "wrote"]


@dataclass
class Options:
    """Options that hold for every command."""

    traceback: bool = False


options = Options()
# Tables in a file or a pipe keep their columns; a terminal has its own width.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, gone at the end; nothing where stderr isn't a terminal.

    Yields:
        A function to be told how much is done, and of how much.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def wrote(path: object) -> None:
    """Tells where a result is, on stderr, so that stdout holds results alone."""
    errors.print(f"wrote {escape(str(path))}", soft_wrap=True)
