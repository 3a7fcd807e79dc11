"""An accelerated denoiser as the loop in C++ takes it: its plans, and ways in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from aigc_engine.diffusion.guidance import Conditions
from aigc_engine.diffusion.solver import UpdateTable
from aigc_engine.graph.accelerated import Accelerated, Held
from aigc_engine.graph.plan import Native, Result
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

    def arguments(self, k: int) -> tuple[Tensor, Tensor]:
        """x and t of evaluation k; x's values are those of the start."""
        rows = self._table.active[k]
        x = torch.cat([self._buffers[0, :rows]] * self._copies).to(self._dtype)
        return x, torch.cat([self._table.timesteps[k, :rows]] * self._copies)

    def add(self, rows: int, held: Held, x: Tensor, t: Tensor) -> bool:
        """Takes the plan for this number of rows, in which x and t are arguments; False if it can't."""
        image, time = held.place(x), held.place(t)
        target, result = held.plan.inputs[image], _only_result(held, x)
        network = [step for step in held.plan.steps if step.needs is None or time in step.needs]
        recordings = [step.recording for step in network if isinstance(step, Native)]
        if target is None or result is None or len(recordings) != len(network):
            return False
        if self._dtype not in (torch.float32, target.dtype) or not copies_natively(x, target):
            return False  # rounded twice, or by PyTorch
        held.run_without(time)
        evaluations = [k for k, active in enumerate(self._table.active) if active == rows]
        schedule = self._times(evaluations, held.plan.inputs[time])
        parts, outputs = target.split(rows), torch.empty((2, *x.shape))
        self._outputs[rows] = outputs
        self._kept.append(schedule)
        self.native.add(
            rows,
            evaluations[0],
            [(place.data_ptr(), times.data_ptr(), times[0].nbytes) for place, times in schedule],
            [_copies([(state[:rows], part) for part in parts]) for state in self._buffers],
            recordings,
            [_copies([(result.value, out)]) for out in outputs],
            [out.data_ptr() for out in outputs],
        )
        return True

    def _times(self, evaluations: Sequence[int], target: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Where the network reads the time, if it does, with its values at these evaluations."""
        if target is None:
            return []
        return [(target, torch.stack([self.arguments(k)[1].to(target.dtype) for k in evaluations]))]


def _only_result(held: Held, x: Tensor) -> Result | None:
    """The plan's result if that's the one thing that the denoiser returns, in x's shape."""
    results = held.plan.results
    value = pytree.tree_unflatten([result.value for result in results], held.out_spec)
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
        x, t = found.arguments(table.active.index(rows))
        held = plans.enter_context(denoiser.held(x, t, conditions.rows(rows)))
        if not found.add(rows, held, x, t):
            return None
    return found
