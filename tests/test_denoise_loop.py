"""The loop in C++: the bits of the loop in Python, its faults, its calls back, and what stops it."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aigc_engine import _native, native
from aigc_engine.diffusion.control import Monitor
from aigc_engine.diffusion.loop import Run
from aigc_engine.diffusion.schedule import VP
from aigc_engine.diffusion.solver import SOLVERS, Recipe, UpdateTable, update_table
from aigc_engine.native.diffusion import denoise_loop
from aigc_engine.ops import linear_update, philox_normal

LINEAR = VP("linear", 1000)
COUNT = 70


def table_of(*solvers: str, steps: int = 5, guidance: float = 1.0) -> UpdateTable:
    """Row b takes steps + b steps."""
    schedule = [LINEAR] * len(solvers)
    return update_table(
        [Recipe(solver, steps + b, schedule[b], "eps", guidance=guidance) for b, solver in enumerate(solvers)]
    )


def start(rows: int, *, count: int = COUNT) -> tuple[Tensor, Tensor]:
    seeds = torch.arange(rows) + 3
    buffers = torch.full((3, rows, count), torch.nan)  # states that aren't there yet must not be read
    buffers[0] = philox_normal(seeds, (count,))
    return buffers, seeds


class Model:
    """A denoiser on rows of numbers; with `outputs` 2 it gives an unconditional output too."""

    def __init__(self, table: UpdateTable) -> None:
        self.table, self.calls = table, []

    def __call__(self, k: int, state: Tensor) -> tuple[Tensor, ...]:
        self.calls.append((k, state.clone()))
        t = self.table.timesteps[k, : len(state), None] / 1000
        cond = torch.tanh(state + t) * 0.9
        return (cond, torch.sin(state) - t) if self.table.guided else (cond,)


def quiet(table: UpdateTable) -> Monitor:
    return Monitor(len(table), None, False, None)


def in_python(model: object, table: UpdateTable, rows: int) -> Tensor:
    buffers, seeds = start(rows)
    return Run(table, model, buffers, seeds, None, quiet(table)).in_python()  # type: ignore[arg-type]


def result_of(table: UpdateTable, buffers: Tensor) -> Tensor:
    out = torch.empty_like(buffers[0])
    for row, evaluations in enumerate(table.evaluations):
        out[table.order[row]] = buffers[evaluations % 3, row]
    return out


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("solvers", [tuple(s for s in SOLVERS if s != "flow_euler"), ("ddim",), ("heun",)])
def test_bits_of_the_loop_in_python(solvers: tuple[str, ...], guidance: float, threads: int) -> None:
    table = table_of(*solvers, guidance=guidance)
    buffers, seeds = start(len(solvers))
    here, there = Model(table), Model(table)
    with native.use_threads(threads):
        end = denoise_loop(there, buffers, table, seeds)
    assert end == ("done", len(table), -1)
    assert torch.equal(result_of(table, buffers), in_python(here, table, len(solvers)))
    assert [k for k, _ in there.calls] == list(range(len(table)))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(here.calls, there.calls, strict=True))


def gaussian(recipe: Recipe, mean: float, deviation: float) -> tuple[list[float], list[float]]:
    """Slope and offset of the exact eps, sigma (x - alpha mean) / (alpha^2 deviation^2 + sigma^2)."""
    grid = recipe.schedule.grid(recipe.steps, recipe.spacing, SOLVERS[recipe.solver].convention)
    slope = grid.sigma / (grid.alpha**2 * deviation**2 + grid.sigma**2)
    return slope.tolist(), (-slope * grid.alpha * mean).tolist()


def test_native_denoiser_of_gaussian_data() -> None:
    """DDIM with the exact denoiser carries noise to data, to the same bits as with that model in Python."""
    recipe = Recipe("ddim", 200, LINEAR, "eps")
    table = update_table([recipe])
    slope, offset = gaussian(recipe, mean=2.0, deviation=0.5)
    buffers, seeds = start(1, count=20_000)
    buffers[0] *= table.init_scale
    again = buffers.clone()
    assert denoise_loop(_native.LinearDenoiser(slope, offset, 2), buffers, table, seeds).stop == "done"
    x = buffers[len(table) % 3, 0]
    assert x.mean().item() == pytest.approx(2.0, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)

    def model(k: int, state: Tensor) -> tuple[Tensor]:
        return (torch.tensor(slope[k]) * state + torch.tensor(offset[k]),)

    denoise_loop(model, again, table, seeds)
    assert torch.equal(again[len(table) % 3], buffers[len(table) % 3])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("row", "element"), [(0, 0), (2, COUNT - 1), (2, 16)])
def test_first_row_that_is_not_finite(row: int, element: int, bad: float) -> None:
    table = table_of("euler", "euler", "euler")
    buffers, seeds = start(3)
    model, calls = Model(table), []

    def breaks(k: int, state: Tensor) -> tuple[Tensor, ...]:
        calls.append(k)
        (out,) = model(k, state)
        if k == 2:
            out[row:, element] = bad
        return (out,)

    assert denoise_loop(breaks, buffers, table, seeds) == ("not_finite", 2, row)
    assert calls == [0, 1, 2]


def test_large_but_finite_is_not_a_fault() -> None:
    table = table_of("euler", steps=1)
    buffers, seeds = start(1)
    table = replace(table, coefficients=torch.tensor([[[0.0, 1.0, 0, 0, 0, 0]]]))
    assert denoise_loop(lambda k, x: (torch.full_like(x, 3.4e38),), buffers, table, seeds).stop == "done"
    assert (buffers[1] == 3.4e38).all()


def test_errors_of_the_callbacks_come_through() -> None:
    table = table_of("ddim", "ddim")
    model = Model(table)

    def raises(k: int, state: Tensor) -> tuple[Tensor, ...]:
        if k == 3:
            raise KeyError("mine")
        return model(k, state)

    def stops(k: int, outputs: object) -> None:
        raise StopIteration(k)

    buffers, seeds = start(2)
    with pytest.raises(KeyError, match="mine"):
        denoise_loop(raises, buffers, table, seeds)
    with pytest.raises(StopIteration, match="0"):
        denoise_loop(model, start(2)[0], table, seeds, on_step=stops)
    with pytest.raises(ValueError, match="outputs 2, expected 1"):
        denoise_loop(lambda k, x: (x.clone(), x.clone()), start(2)[0], table, seeds)
    with pytest.raises(IndexError):
        denoise_loop(_native.LinearDenoiser([1.0], [0.0], 1), start(2)[0], table, seeds)
    buffers, seeds = start(2)
    assert denoise_loop(model, buffers, table, seeds).stop == "done"


def test_on_step_sees_each_evaluation_and_its_outputs() -> None:
    table = table_of("dpmpp_2m", guidance=2.0)
    buffers, seeds = start(1)
    model, seen = Model(table), []
    control = _native.LoopControl()
    denoise_loop(
        model,
        buffers,
        table,
        seeds,
        on_step=lambda k, outputs: seen.append((k, control.done, len(outputs), outputs[0].clone())),
        control=control,
    )
    assert [(k, done, n) for k, done, n, _ in seen] == [(k, k + 1, 2) for k in range(len(table))]
    for (_, state), (k, _, _, cond) in zip(model.calls, seen, strict=True):
        assert torch.equal(cond, Model(table)(k, state)[0])


def endless(evaluations: int = 200_000, count: int = 300_000) -> tuple[object, Tensor, UpdateTable, Tensor]:
    """Minutes of evaluations of a native denoiser."""
    table = table_of("ddim", steps=2)
    coefficients = torch.tensor([0.5, 0.5, 0, 0, 0, 0]).repeat(evaluations, 1, 1)
    zeros = torch.zeros(evaluations, 1)
    table = replace(
        table,
        timesteps=zeros,
        coefficients=coefficients,
        noise_scale=zeros,
        streams=zeros.long(),
        active=(1,) * evaluations,
    )
    buffers, seeds = start(1, count=count)
    return _native.LinearDenoiser([1.0] * evaluations, [0.0] * evaluations, 1), buffers, table, seeds


def test_another_thread_watches_and_cancels() -> None:
    """It can only do so while the loop runs without the interpreter lock."""
    model, buffers, table, seeds = endless()
    control, ends = _native.LoopControl(), []
    loop = threading.Thread(
        target=lambda: ends.append(denoise_loop(model, buffers, table, seeds, control=control))
    )
    loop.start()
    seen = set()
    while len(seen) < 3:
        seen.add(control.done)
    assert not control.cancelled
    control.cancel()
    loop.join(60)
    (end,) = ends
    assert end.stop == "cancelled" and max(seen) <= end.evaluation < len(table.active)


def test_runs_may_share_a_native_denoiser() -> None:
    recipe = Recipe("dpmpp_2m", 30, LINEAR, "eps")
    table = update_table([recipe])
    model = _native.LinearDenoiser(*gaussian(recipe, 1.0, 0.5), 2)
    expected, seeds = start(1, count=5000)
    initial = expected.clone()
    denoise_loop(model, expected, table, seeds)
    states = [initial.clone() for _ in range(4)]
    loops = [threading.Thread(target=denoise_loop, args=(model, state, table, seeds)) for state in states]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    assert all(torch.equal(state[len(table) % 3], expected[len(table) % 3]) for state in states)


INTERRUPTED = """
import signal, threading, time, os
from dataclasses import replace
from tests.test_denoise_loop import denoise_loop, endless
model, buffers, table, seeds = endless()
for handler in range(2):
    sent = []
    def send():
        time.sleep(0.3)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=send).start()
    try:
        denoise_loop(model, buffers, table, seeds)
    except KeyboardInterrupt:
        print("interrupted", round((time.monotonic() - sent[0]) * 1000), "ms")
table = replace(table, active=table.active[:50], coefficients=table.coefficients[:50])
print(denoise_loop(model, buffers, table, seeds).stop)
"""


def test_interrupt_ends_the_loop_and_leaves_the_process_usable() -> None:
    """Ctrl-C twice in a native denoiser's loop, then a whole run; 2 s instead of 200 ms is for busy hosts."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=200)
    lines = done.stdout.split("\n")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in lines if line] == ["interrupted", "interrupted", "done"]
    assert all(int(line.split()[1]) < 2000 for line in lines[:2]), lines


def test_a_table_that_reads_what_is_not_there_is_refused() -> None:
    table = table_of("dpmpp_2m", "dpmpp_2m")
    buffers, seeds = start(2)
    history, uncond = table.coefficients.clone(), table.coefficients.clone()
    history[0, 1, 4] = 1e-3
    uncond[2, 0, 2] = 1e-3
    broken = {
        "history at evaluation 0": {"coefficients": history},
        "uncond without guidance": {"coefficients": uncond},
        "active rows": {"active": (1, 2, *table.active[2:])},
        r"coefficients \(6, 2, 5\), expected \(6, 2, 6\)": {"coefficients": history[..., :5]},
    }
    for message, change in broken.items():
        with pytest.raises(ValueError, match=f"denoise_loop: .*{message}"):
            denoise_loop(Model(table), buffers, replace(table, **change), seeds)
    for wrong in (buffers.double(), buffers.transpose(1, 2)):
        with pytest.raises(ValueError, match="denoise_loop: buffers .*, expected contiguous float32 on cpu"):
            denoise_loop(Model(table), wrong, table, seeds)
    with pytest.raises(ValueError, match="native denoiser's outputs 1, expected 2"):
        denoise_loop(
            _native.LinearDenoiser([1.0] * 9, [0.0] * 9, 1), buffers, replace(table, guided=True), seeds
        )


def test_noise_comes_from_the_streams_of_the_table() -> None:
    table = table_of("ddpm", steps=2)
    buffers, seeds = start(1)
    x = buffers[0].clone()
    model = Model(table)
    denoise_loop(model, buffers, table, seeds)
    (out,) = model(0, x)
    z = philox_normal(seeds, (COUNT,), stream=1)
    terms, c = [x, out, z], torch.cat([table.coefficients[0, :, :2], table.noise_scale[0, :, None]], 1)
    assert table.noise_scale[0, 0] > 0
    assert torch.equal(model.calls[1][1], linear_update(terms, c))
