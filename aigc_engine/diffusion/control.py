"""Progress, preview and cancelling of a run, at every evaluation of the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm


class Cancelled(Exception):
    """The run was cancelled by its callback or its cancel object; there is no result.

    Args:
        step: evaluations done.
        total: evaluations of the whole run.
    """

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"sample: cancelled after evaluation {step} of {total}")
        self.step, self.total = step, total

    def __reduce__(self) -> tuple[type[Cancelled], tuple[int, int]]:
        return type(self), (self.step, self.total)


class Event(Protocol):
    """What `cancel` may be: threading.Event, asyncio.Event, or anything with `is_set`."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, as its callback sees it.

    Args:
        step: evaluations done, from 1.
        total: evaluations of the whole run (two a step for heun, less one).
    """

    step: int
    total: int
    _preview: Callable[[], Tensor] = field(repr=False)

    def preview(self) -> Tensor:
        """The present estimate of x0, float32 in the shape of the result: computed when called.

        Only valid inside the callback: afterwards the state has moved on.
        """
        return self._preview()


Callback = Callable[[Progress], Any]


class Monitor(AbstractContextManager["Monitor"]):
    """Runs the callback, the progress bar and the check for cancelling after each evaluation."""

    def __init__(self, total: int, callback: Callback | None, progress: bool, cancel: Event | None) -> None:
        for name, value, wanted in (
            ("callback", callback, callback is None or callable(callback)),
            ("cancel", cancel, cancel is None or callable(getattr(cancel, "is_set", None))),
        ):
            if not wanted:
                kind = "a callable" if name == "callback" else "an event with is_set()"
                raise TypeError(f"sample: {name} {type(value).__name__}, expected {kind} or None")
        self.total, self._callback, self._cancel = total, callback, cancel
        self._bar = tqdm(total=total, desc="sample", disable=not progress)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do between evaluations."""
        return self._callback is None and self._cancel is None and self._bar.disable

    def __call__(self, step: int, preview: Callable[[], Tensor]) -> None:
        """Reports that `step` evaluations are done.

        Raises:
            Cancelled: the callback returned False, or the cancel object is set.
        """
        self._bar.update()
        if self._callback is not None and self._callback(Progress(step, self.total, preview)) is False:
            raise Cancelled(step, self.total)
        self.check(step)

    def check(self, step: int) -> None:
        """Raises Cancelled if the cancel object is set."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(step, self.total)

    def __exit__(self, *error: object) -> None:
        self._bar.close()
