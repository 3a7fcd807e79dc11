"""Adapters of the native solver step and of the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, empty, store

Outputs = tuple[Tensor, ...]
STOPS = ("done", "not_finite", "cancelled")  # csrc/runtime/denoise_loop.h: LoopResult::Stop


def linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    x = terms[0]
    count = x.numel()
    if not count:
        return torch.empty_like(x) if out is None else out
    rows = x.shape[0]
    terms = contiguous_rows(terms)
    target = writable(x, out)
    coefficients = contiguous(coefficients)
    noise: Sequence[Tensor] = ()
    if noise_scale is not None and seeds is not None and streams is not None:
        noise = [contiguous(value) for value in (noise_scale, seeds, streams)]
    _native.linear_update(
        [term.data_ptr() for term in terms],
        [term.stride(0) for term in terms],
        target.data_ptr(),
        target.stride(0),
        coefficients.data_ptr(),
        [value.data_ptr() for value in noise],
        rows,
        count // rows,
        DTYPE_CODES[x.dtype],
        threads(),
    )
    return target if out is None or target is out else store(target, out)


def contiguous_rows(terms: Sequence[Tensor]) -> list[Tensor]:
    """The terms, those whose rows aren't contiguous copied."""
    return [term if term.is_contiguous() or term[0].is_contiguous() else contiguous(term) for term in terms]


def writable(x: Tensor, out: Tensor | None) -> Tensor:
    """Where a kernel writes: `out` if its rows are contiguous, else a new tensor like x."""
    if out is not None and (out.is_contiguous() or out[0].is_contiguous()):
        return out
    if x.device.type == "cpu":
        return empty(x.shape, x.dtype)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


class LoopResult(NamedTuple):
    """How a loop ended.

    Args:
        stop: "done", "not_finite" or "cancelled".
        evaluation: the one whose update gave NaN or infinity; otherwise the number of evaluations done.
        row: the first row of the table that isn't finite, or -1.
    """

    stop: str
    evaluation: int
    row: int


class Table(Protocol):
    """What the loop reads of `diffusion.solver.UpdateTable`."""

    @property
    def timesteps(self) -> Tensor: ...
    @property
    def coefficients(self) -> Tensor: ...
    @property
    def noise_scale(self) -> Tensor: ...
    @property
    def streams(self) -> Tensor: ...
    @property
    def active(self) -> tuple[int, ...]: ...
    @property
    def guided(self) -> bool: ...


def denoise_loop(
    model: Callable[[int, Tensor], Outputs] | _native.Denoiser,
    buffers: Tensor,
    table: Table,
    seeds: Tensor,
    *,
    on_step: Callable[[int, Outputs], None] | None = None,
    control: _native.LoopControl | None = None,
) -> LoopResult:
    """Runs a table's evaluations and updates in C++, without the interpreter lock but for the calls back.

    The steps and the bits of `diffusion.loop.Run.in_python`. Python's signal handlers run at least every
    50 ms; what they raise ends the loop, as does what `model` or `on_step` raises.

    Args:
        model: called as model(k, state of the active rows), returns (cond,) or (cond, uncond), contiguous
            float32; or a native denoiser.
        buffers: (3, B, ...) float32, contiguous, on the CPU. The starting state is buffers[0]; row b ends in
            buffers[e % 3], e its number of evaluations.
        table: B rows, sorted by their number of evaluations, most first.
        seeds: (B,) int64 of the noise.
        on_step: called with (k, outputs) after the update of evaluation k; outputs are () of a native model.
        control: tells other threads how far the loop is, and lets them cancel it.

    Returns:
        How it ended.

    Raises:
        ValueError: a table that reads outputs or history that aren't there, or buffers that aren't as above.
    """
    if buffers.dtype != torch.float32 or not buffers.is_contiguous() or buffers.device.type != "cpu":
        raise ValueError(
            f"denoise_loop: buffers {buffers.dtype} on {buffers.device}, expected contiguous float32 on cpu"
        )
    rows = buffers.shape[1]
    wanted = (len(table.active), rows, 6)
    if tuple(table.coefficients.shape) != wanted:
        raise ValueError(f"denoise_loop: coefficients {tuple(table.coefficients.shape)}, expected {wanted}")
    per_row = [table.timesteps, table.coefficients, table.noise_scale, table.streams]
    kept = [value.contiguous() for value in (*per_row, seeds)]
    latest: list[Outputs] = [
        (),
        (),
    ]  # by parity: the solver reads an output until the evaluation after the next

    def evaluate(k: int) -> list[int]:
        latest[k % 2] = model(k, buffers[k % 3, : table.active[k]])
        return [output.data_ptr() for output in latest[k % 2]]

    stop, evaluation, row = _native.denoise_loop(
        model if isinstance(model, _native.Denoiser) else evaluate,
        buffers.data_ptr(),
        buffers[0, 0].numel(),
        *[value.data_ptr() for value in kept[:4]],
        table.active,
        rows,
        kept[4].data_ptr(),
        table.guided,
        None if on_step is None else lambda k: on_step(k, latest[k % 2]),
        control,
        threads(),
    )
    return LoopResult(STOPS[stop], evaluation, row)
