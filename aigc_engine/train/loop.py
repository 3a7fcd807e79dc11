"""The training loop: progress, moving average, state on disk, interruption and exact resumption."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from aigc_engine import zoo
from aigc_engine.planned import keep_graph
from aigc_engine.train.task import Task

STATE_FILE = "training-state.pt"
STATE_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """How a run ended: `step` of `total_steps` done, files in `path`, and a sentence for the user."""

    finished: bool
    step: int
    path: Path
    message: str


class MovingAverage:
    """Exponential moving average of a model's parameters; buffers are copied. `e += (1 - d) (w - e)`.

    The decay is warmed up as min(decay, (1 + k) / (10 + k)), so that early weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), [p.data for p in model.parameters()], 1.0 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)


def step_seed(seed: int, step: int) -> int:
    """A seed for step `step`: distinct for every (seed, step) below 2^31, the same on every machine."""
    return (seed & 0x7FFFFFFF) * (1 << 32) + step


def run(
    task: Task, out: str | Path, *, resume: bool = False, progress: bool = True, threads: int | None = None
) -> Result:
    """Train `task` and save the model, its config and its card in the folder `out`.

    The state is written to `out/training-state.pt` about once a minute and on Ctrl-C; `resume=True` goes on
    from it and ends with the same weights as a run that was never stopped.

    Args:
        task: what to train.
        out: folder; made if missing.
        resume: go on from the state in `out`.
        progress: draw a progress bar on stderr.
        threads: torch threads, >= 1; None keeps the current number.
    Returns:
        The outcome; `finished` is False after Ctrl-C.
    Raises:
        ValueError: `out` holds the state of another run, or `resume` finds none.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    average = MovingAverage(task.exported, task.ema)
    start = _first_step(task, average, out, resume)
    with _threads(threads), torch.random.fork_rng(), _interruption() as interrupted:
        step = _train(task, average, out, start, progress, interrupted)
    if step < task.total_steps:
        message = f"stopped at step {step} of {task.total_steps}; the state is in {out}, resume to go on"
        return Result(False, step, out, message)
    # What is measured is what a reader of the file gets: the weights after rounding to their storage type.
    model = average.model
    for tensor in model.state_dict().values():  # not every buffer: those outside the file stay exact
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(task.storage))
    metrics = task.measure(model)
    zoo.save(
        out,
        model,
        task.config,
        storage=task.storage,
        card={**task.card, "Recipe": task.recipe, "Seed": str(task.seed), "Steps": str(step)},
        metrics=metrics,
    )
    with torch.random.fork_rng():  # a model is made to be loaded
        keep_graph(zoo.load(out))
    (out / STATE_FILE).unlink(missing_ok=True)
    return Result(True, step, out, f"trained {task.recipe} for {step} steps; the model is in {out}")


def _train(
    task: Task, average: MovingAverage, out: Path, start: int, progress: bool, interrupted: threading.Event
) -> int:
    for model in task.models.values():
        model.train()
    saved_at = time.monotonic()
    step = start
    with tqdm(total=task.total_steps, initial=start, desc=task.recipe, disable=not progress) as bar:
        while step < task.total_steps and not interrupted.is_set():
            torch.manual_seed(step_seed(task.seed, step))
            metrics = task.train_step(step)
            average.update(task.exported, step)
            step += 1
            bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False)
            bar.update()
            if time.monotonic() - saved_at > STATE_SECONDS:
                _save_state(task, average, out, step)
                saved_at = time.monotonic()
    _save_state(task, average, out, step)
    return step


def _identity(task: Task) -> dict[str, Any]:
    return {"recipe": task.recipe, "seed": task.seed, "total_steps": task.total_steps}


def _save_state(task: Task, average: MovingAverage, out: Path, step: int) -> None:
    state = {
        **_identity(task),
        "step": step,
        "models": {name: model.state_dict() for name, model in task.models.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()},
        "average": average.model.state_dict(),
    }
    with zoo.replacing(out / STATE_FILE) as temporary:
        torch.save(state, temporary)


def _first_step(task: Task, average: MovingAverage, out: Path, resume: bool) -> int:
    path = out / STATE_FILE
    if not resume:
        if path.exists():
            raise ValueError(
                f"train: out {str(out)!r} holds an unfinished run, expected an empty folder; "
                "pass resume=True (--resume) to go on with it, or choose another folder"
            )
        return 0
    if not path.exists():
        raise ValueError(
            f"train: resume found no {STATE_FILE} in {str(out)!r}, expected the folder of an unfinished run; "
            "start without resume"
        )
    try:
        state = torch.load(path, weights_only=True)
        found = {key: state[key] for key in _identity(task)}
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"train: resume found a damaged {STATE_FILE} in {str(out)!r} ({type(error).__name__}), "
            "expected one that training wrote; start in another folder"
        ) from None
    if found != _identity(task):
        raise ValueError(
            f"train: resume found a run of {found}, expected {_identity(task)}; "
            "choose the same recipe and seed"
        )
    for name, model in task.models.items():
        model.load_state_dict(state["models"][name])
    for name, optimizer in task.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    average.model.load_state_dict(state["average"])
    return int(state["step"])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is not None and count < 1:
        raise ValueError(f"train: threads {count}, expected at least 1; leave it out for torch's own number")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that no step is cut in half; a second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(signum: int, frame: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
