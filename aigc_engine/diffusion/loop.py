"""The denoising loop: evaluate the model, update the state, report; the same steps for every solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from aigc_engine.diffusion.control import Monitor
from aigc_engine.diffusion.guidance import Conditions
from aigc_engine.diffusion.recorded import Outputs, Recorded, recorded
from aigc_engine.diffusion.solver import UpdateTable
from aigc_engine.ops import linear_update

Denoiser = Callable[[Tensor, Tensor, Any], Tensor]
# x_{k-1}, x_k and x_{k+1} take turns in three buffers: evaluation k reads buffer k % 3.
BUFFERS = 3


class _Noted:
    """Adds to an exception that passes through where the run was."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and hasattr(error, "add_note"):  # Python 3.11
            error.add_note(self._where)


def _version(x: Tensor) -> int | None:
    """Counts in-place writes; not kept in inference mode."""
    return None if x.is_inference() else x._version


class Evaluator:
    """Calls the denoiser on the active rows, twice of them under guidance, and checks what it returns.

    Raises:
        TypeError, ValueError: the output isn't a tensor of the input's shape and device in float32 or in the
            input's dtype; the input was written to; the last call's memory was returned again.
    """

    def __init__(
        self, denoiser: Denoiser, conditions: Conditions, table: UpdateTable, dtype: torch.dtype
    ) -> None:
        self._denoiser, self._conditions, self._table, self._dtype = denoiser, conditions, table, dtype
        self._last: Tensor | None = None

    def recorded(self, buffers: Tensor) -> AbstractContextManager[Recorded | None]:
        """The denoiser as one that runs without Python, for states in these buffers, if it can."""
        return recorded(self._denoiser, self._conditions, self._table, buffers, self._dtype)

    def __call__(self, k: int, state: Tensor) -> Outputs:
        rows = len(state)
        copies = 2 if self._table.guided else 1
        t = self._table.timesteps[k, :rows]
        t = torch.cat([t, t]) if copies == 2 else t
        x = torch.cat([state, state]) if copies == 2 else state
        x = x.to(self._dtype)
        version = _version(x)
        with _Noted(f"sample: raised by the denoiser at evaluation {k + 1} of {len(self._table)}"):
            out = self._denoiser(x, t, self._conditions.rows(rows))
        self._check(k, x, version, out)
        out = out.detach().to(torch.float32).contiguous()
        self._last = out
        return (out[:rows], out[rows:]) if copies == 2 else (out,)

    def _check(self, k: int, x: Tensor, version: int | None, out: object) -> None:
        where = f"at evaluation {k + 1} of {len(self._table)}"
        if not isinstance(out, Tensor):
            raise TypeError(
                f"sample: denoiser's output {type(out).__name__} {where}, expected a tensor; "
                "wrap the model in a function that returns one"
            )
        if out.shape != x.shape:
            raise ValueError(
                f"sample: denoiser's output {tuple(out.shape)} {where}, "
                f"expected {tuple(x.shape)} as its input"
            )
        if out.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"sample: denoiser's output {out.dtype} {where}, expected {x.dtype} as its input")
        if out.device != x.device:
            raise ValueError(f"sample: denoiser's output on {out.device} {where}, expected {x.device}")
        if _version(x) != version:
            raise ValueError(f"sample: denoiser wrote to its input {where}, expected it unchanged; clone it")
        if self._table.remembers[k] and self._last is not None and out.data_ptr() == self._last.data_ptr():
            raise ValueError(
                f"sample: denoiser's output {where} is the memory of the one before, which the solver still "
                "needs, expected a new tensor; return a clone"
            )


class Draw:
    """Noise (B, ...) in the table's order from a generator, drawn in the order in which diffusers draws.

    Args:
        generator: one for the batch, or one per row of the caller.
        shape: (n, ...).
        dtype: drawn in it, as diffusers draws in the dtype of its latents.
        order: (n,) the caller's index of each row, on the result's device.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        order: Tensor,
    ) -> None:
        self._generator, self._shape, self._dtype, self._order = generator, shape, dtype, order

    def __call__(self) -> Tensor:
        if isinstance(self._generator, torch.Generator):
            noise = self._normal(self._shape, self._generator)
        else:
            noise = torch.cat([self._normal((1, *self._shape[1:]), g) for g in self._generator])
        return noise.to(self._order.device, torch.float32)[self._order]

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=self._dtype)


class Run:
    """The state of one run.

    Args:
        table: on the state's device.
        evaluate: the model.
        buffers: (3, B, ...) float32, contiguous; the starting state is in buffers[0].
        seeds: (B,) int64 in the table's order, on the same device.
        draw: where all noise comes from; None takes the seeds'.
        monitor: told after each evaluation.
    """

    def __init__(
        self,
        table: UpdateTable,
        evaluate: Evaluator,
        buffers: Tensor,
        seeds: Tensor,
        draw: Draw | None,
        monitor: Monitor,
    ) -> None:
        self.table, self.evaluate, self.buffers, self.seeds = table, evaluate, buffers, seeds
        self.draw, self.monitor = draw, monitor
        place = table.order.argsort()
        last = torch.tensor(table.evaluations)[place] % BUFFERS
        self._order, self._place, self._last = (x.to(buffers.device) for x in (table.order, place, last))

    def __call__(self) -> Tensor:
        """Runs the loop where `linear_update` runs: in C++ if that is native here, else in Python.

        Noise from a generator is one more term in the sum, which the loop in C++ doesn't know: there each
        update is a call of `linear_update`.
        """
        coefficients = self.table.init_scale[:, None]
        runs = linear_update.explain([self.buffers[0]], coefficients).runs
        if runs == "native" and not (self.draw is not None and any(self.table.draws)):
            return self.natively()
        return self.in_python()

    def natively(self) -> Tensor:
        """Runs the loop in C++, which calls back for the monitor if that has work.

        It calls back for the model too, unless that was accelerated and needs no Python.
        """
        from aigc_engine.native.diffusion import denoise_loop  # it can't be imported where there is none

        with self.evaluate.recorded(self.buffers) as recorded:

            def report(k: int, outputs: Outputs) -> None:
                self.report(k, outputs if recorded is None else recorded.outputs(k))

            end = denoise_loop(
                self.evaluate if recorded is None else recorded.native,
                self.buffers,
                self.table,
                self.seeds,
                on_step=None if self.monitor.idle else report,
            )
        if end.stop == "not_finite":
            self.fail(end.evaluation, end.row)
        return self.result()

    def in_python(self) -> Tensor:
        """Runs the loop here."""
        table, buffers = self.table, self.buffers
        before: Outputs = ()
        for k, rows in enumerate(table.active):
            x, following = buffers[k % BUFFERS, :rows], buffers[(k + 1) % BUFFERS, :rows]
            outputs = self.evaluate(k, x)
            terms: list[Tensor] = [x, *outputs]
            columns = [0, 1, 2][: len(terms)]
            if table.remembers[k]:
                terms += [buffers[(k - 1) % BUFFERS, :rows], *(out[:rows] for out in before)]
                columns += [column + 3 for column in columns]
            coefficients = table.coefficients[k, :rows][:, columns]
            noise = self.draw() if self.draw is not None and table.draws[k] else None
            if noise is not None and table.noisy[k]:
                terms.append(noise[:rows])
                coefficients = torch.cat([coefficients, table.noise_scale[k, :rows, None]], dim=1)
            linear_update(terms, coefficients, out=following, **self._noise_of_seeds(k, rows))
            before = outputs
            self._check_finite(k, following)
            self.report(k, outputs)
        return self.result()

    def _noise_of_seeds(self, k: int, rows: int) -> dict[str, Tensor]:
        if self.draw is not None or not self.table.noisy[k]:
            return {}
        return {
            "noise_scale": self.table.noise_scale[k, :rows],
            "seeds": self.seeds[:rows],
            "streams": self.table.streams[k, :rows],
        }

    def _check_finite(self, k: int, state: Tensor) -> None:
        finite = torch.isfinite(state).flatten(1).all(dim=1)
        if not finite.all():
            self.fail(k, int(finite.int().argmin()))

    def fail(self, k: int, row: int) -> None:
        """Raises RuntimeError for a row of the table that became NaN or Inf at evaluation k."""
        raise RuntimeError(
            f"sample: row {int(self.table.order[row])} became NaN or Inf at evaluation {k + 1} of "
            f"{len(self.table)} (t = {self.table.timesteps[k, row].item():.6g}), "
            "expected finite outputs of the denoiser"
        )

    def report(self, k: int, outputs: Outputs) -> None:
        """Tells the monitor that evaluation k and its update are done."""
        if not self.monitor.idle:
            self.monitor(k + 1, lambda: self._preview(k, outputs))

    def _preview(self, k: int, outputs: Outputs) -> Tensor:
        """x0 as evaluation k sees it, in the caller's order; rows that are done show their result."""
        rows = self.table.active[k]
        terms = [self.buffers[k % BUFFERS, :rows], *outputs]
        estimate = self.result()
        estimate[self._order[:rows]] = linear_update(terms, self.table.preview[k, :rows, : len(terms)])
        return estimate

    def result(self) -> Tensor:
        """The rows in the caller's order, each from the buffer that its last update wrote."""
        return self.buffers[self._last, self._place]
