"""An accelerated denoiser as the loop in C++ takes it: its plans, and ways in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from aigc_engine.diffusion.guidance import Conditions
from aigc_engine.diffusion.solver import UpdateTable
from aigc_engine.graph.accelerated import Accelerated
from aigc_engine.graph.held import Held
from aigc_engine.graph.plan import Native, Result, Torch
from aigc_engine.graph.values import copies_natively

if TYPE_CHECKING:
    from aigc_engine import _native

Outputs = tuple[Tensor, ...]  # (cond,) or (cond, uncond), each (rows, ...) float32 and contiguous


class Recorded:
    """A denoiser that runs without Python.

    Args:
        table: of the run.
        buffers: (3, B, ...) float32, its states.
        dtype: in which the denoiser is to get its input.
    """

    def __init__(self, table: UpdateTable, buffers: Tensor, dtype: torch.dtype) -> None:
        from aigc_engine import _native

        self._table, self._buffers, self._dtype = table, buffers, dtype
        self._copies = 2 if table.guided else 1
        self._outputs: dict[int, Tensor] = {}  # rows to (2, n, ...)
        self._kept: list[object] = []  # what native code reads
        self.native = _native.RecordedDenoiser(guided=table.guided)

    def outputs(self, k: int) -> Outputs:
        """What the network gave at evaluation k, until evaluation k + 2 has run."""
        rows = self._table.active[k]
        return self._outputs[rows][k % 2].split(rows)

    def image(self, rows: int) -> Tensor:
        """What the denoiser gets as x at the start, for this number of rows."""
        return torch.cat([self._buffers[0, :rows]] * self._copies).to(self._dtype)

    def times(self, rows: int) -> Tensor:
        """What it gets as t at each evaluation of this number of rows, (E, n)."""
        evaluations = [k for k, active in enumerate(self._table.active) if active == rows]
        return torch.cat([self._table.timesteps[evaluations, :rows]] * self._copies, dim=1)

    def add(self, rows: int, held: Held, x: Tensor, t: Tensor, times: Tensor) -> bool:
        """Takes the plan for this number of rows, in which x and t are arguments; False if it can't."""
        target, result = held.plan.inputs[held.place(x)], _only_result(held, x)
        if target is None or result is None or not copies_natively(x, target):
            return False
        if self._dtype not in (torch.float32, target.dtype):
            return False  # rounded twice
        known, network = _split(held, held.place(t), times)
        recordings = [step.recording for step in network if isinstance(step, Native)]
        schedules = [_schedule(place, values) for place, values in known]
        if len(recordings) != len(network) or any(found is None for found in schedules):
            return False
        held.run_without(held.place(t))
        parts, outputs = target.split(rows), torch.empty((2, *x.shape))
        self._outputs[rows] = outputs
        self._kept.append(schedules)
        self.native.add(
            rows,
            self._table.active.index(rows),
            [found.addresses for found in schedules if found is not None],
            [_copies([(state[:rows], part) for part in parts]) for state in self._buffers],
            recordings,
            [_copies([(result.value, out)]) for out in outputs],
            [out.data_ptr() for out in outputs],
        )
        return True


def _split(held: Held, place: int, times: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Native | Torch]]:
    """What the network reads that is known before the loop, for all times; and what then runs in the loop."""
    steps = held.plan.steps
    known = held.over(place, times)
    if known is not None:
        return known, [step for step in steps if step.needs is None]
    time = held.plan.inputs[place]
    known = [] if time is None else [(time, times.to(time.dtype))]
    return known, [step for step in steps if step.needs is None or place in step.needs]


@dataclass
class _Schedule:
    """Values (E, n, ...) that are copied to (n, ...) by turns, row by row."""

    target: Tensor
    values: Tensor

    @property
    def addresses(self) -> tuple[int, int, int, int, int]:
        """As `_native.RecordedDenoiser.add` takes it."""
        pitch = self.target.stride(0) * self.target.element_size()
        row = self.values[0, 0].nbytes
        return self.target.data_ptr(), pitch, self.values.data_ptr(), len(self.target), row


def _schedule(target: Tensor, values: Tensor) -> _Schedule | None:
    """The values arranged as the target; None where a row of that isn't one piece of memory."""
    row = target[0]
    if torch.empty_like(row).stride() != row.stride():
        return None
    size = row.numel()
    arranged = torch.empty_strided(
        values.shape, (len(target) * size, size, *row.stride()), dtype=target.dtype
    )
    return _Schedule(target, arranged.copy_(values))


def _only_result(held: Held, x: Tensor) -> Result | None:
    """The plan's result if that's the one thing that the denoiser returns, in x's shape."""
    results = held.plan.results
    value = pytree.tree_unflatten([result.value for result in results], held.capture.out_spec)
    if not isinstance(value, Tensor) or value.shape != x.shape or not copies_natively(value, x):
        return None
    return results[0] if results[0].dtype in (value.dtype, torch.float32) else None


def _copies(pairs: Sequence[tuple[Tensor, Tensor]]) -> _native.Recording:
    """A recording that copies each first to its second."""
    from aigc_engine import _native
    from aigc_engine.native import pointwise

    recording = _native.Recording()
    recording.start()
    try:
        for source, target in pairs:
            pointwise.run([], target, source)
    finally:
        recording.stop()
    return recording


@contextmanager
def recorded(
    denoiser: Callable[..., Tensor],
    conditions: Conditions,
    table: UpdateTable,
    buffers: Tensor,
    dtype: torch.dtype,
) -> Iterator[Recorded | None]:
    """The denoiser as a native one for the run of this table, or None where its calls need Python.

    That is so of anything but an accelerated module, and of one that leaves to PyTorch what follows from x.
    """
    with ExitStack() as plans:
        yield _recorded(plans, denoiser, conditions, table, buffers, dtype)


def _recorded(
    plans: ExitStack,
    denoiser: Callable[..., Tensor],
    conditions: Conditions,
    table: UpdateTable,
    buffers: Tensor,
    dtype: torch.dtype,
) -> Recorded | None:
    if not isinstance(denoiser, Accelerated):
        return None
    found = Recorded(table, buffers, dtype)
    for rows in dict.fromkeys(table.active):
        x, times = found.image(rows), found.times(rows)
        t = times[0]
        held = plans.enter_context(denoiser.held(x, t, conditions.rows(rows)))
        if not found.add(rows, held, x, t, times):
            return None
    return found
