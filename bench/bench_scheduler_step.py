"""One solver step: `linear_update` against the step of diffusers' own scheduler, as its pipelines call it.

Both sides run the updates of 50 steps on Stable Diffusion's latents, with the same given predictions and with
the timetable made beforehand. Times are of 50 steps. The predictions lie in four tensors by turns: what a
network just wrote is in the caches, and an allocator hands out the same few blocks. DDPM draws noise on both
sides while timed; to verify, diffusers is handed the engine's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from aigc_engine import ops
from aigc_engine.diffusion.schedule import VP
from aigc_engine.diffusion.solver import Recipe, update_table
from aigc_engine.diffusion.spacing import Spacing
from bench.case import Case, Work, require
from bench.check import max_difference

STEPS = 50
BLOCKS = 4  # DPM++2M looks back one prediction
SMALL, LARGE = (1, 4, 64, 64), (8, 4, 128, 128)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = VP("scaled_linear", 1000, **BETAS)
BOUND = 1e-4  # relative to the largest latent: float32 over 50 steps


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers, our solver that does the same, and the promised ratio at each size."""

    solver: str
    scheduler: str
    options: dict[str, Any]
    arguments: dict[str, Any]
    small: float
    large: float = 4.0


PEERS = (
    Peer("ddim", "DDIMScheduler", {"clip_sample": False}, {"eta": 0.0}, 8.0),
    Peer("euler", "EulerDiscreteScheduler", {}, {}, 8.0),
    Peer("dpmpp_2m", "DPMSolverMultistepScheduler", {}, {}, 15.0),
    Peer("ddpm", "DDPMScheduler", {"clip_sample": False}, {}, 15.0),
)


def cases() -> Iterator[Case]:
    for peer in PEERS:
        for shape, target in ((SMALL, peer.small), (LARGE, peer.large)):
            name = f"{peer.solver}-{'x'.join(map(str, shape))}"
            build = partial(_work, peer, shape, name)
            yield Case("step", name, f"diffusers {peer.scheduler}.step", build, target)


def _work(peer: Peer, shape: tuple[int, ...], name: str) -> Work:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=g)
    blocks = [torch.randn(shape, generator=g) for _ in range(BLOCKS)]
    predictions = [blocks[k % BLOCKS] for k in range(STEPS)]
    ours, terms = _ours(peer.solver, start, predictions)
    theirs = _theirs(peer, start, predictions)
    touched = STEPS * (terms + 1) * start.numel() * start.element_size()

    def verify() -> float:
        with _shared_noise(shape):
            expected = theirs()
        error = max_difference(ours(), expected)
        require(name, error / expected.abs().max().item(), BOUND)
        return error

    return Work(ours, theirs, verify, bytes=touched, items=STEPS, unit="steps")


def _ours(solver: str, start: Tensor, predictions: list[Tensor]) -> tuple[Callable[[], Tensor], int]:
    """The run of 50 steps, and how many tensors each step reads."""
    rows = len(start)
    recipe = Recipe(solver, STEPS, SCHEDULE, "eps", Spacing(timesteps="linspace"))
    table = update_table([recipe] * rows)
    columns = [0, 1, 3, 4] if solver == "dpmpp_2m" else [0, 1]
    coefficients = [c[:, columns].contiguous() for c in table.coefficients]
    seeds = torch.arange(rows)
    noisy = bool(table.noise_scale.any())
    noise = [
        {"noise_scale": table.noise_scale[k], "seeds": seeds, "streams": table.streams[k]} if noisy else {}
        for k in range(STEPS)
    ]
    states = [torch.empty_like(start) for _ in range(3)]
    first = start * table.init_scale.view(-1, *[1] * (start.ndim - 1))
    with_history = len(columns) == 4

    def run() -> Tensor:
        x, before, out_before = first, first, predictions[0]
        for k, out in enumerate(predictions):
            terms = [x, out, before, out_before] if with_history else [x, out]
            x_next = ops.linear_update(terms, coefficients[k], out=states[k % 3], **noise[k])
            x, before, out_before = x_next, x, out
        return x

    return run, len(columns)


def _theirs(peer: Peer, start: Tensor, predictions: list[Tensor]) -> Callable[[], Tensor]:
    import diffusers

    scheduler = getattr(diffusers, peer.scheduler)(
        beta_schedule="scaled_linear", timestep_spacing="linspace", **BETAS, **peer.options
    )
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = (
        True  # a pipeline has scaled the input by then; without it Euler's step warns
    )
    first = start * scheduler.init_noise_sigma

    def run() -> Tensor:
        _rewind(scheduler)
        x = first
        for t, out in zip(scheduler.timesteps, predictions, strict=True):
            x = scheduler.step(out, t, x, **peer.arguments, return_dict=False)[0]
        return x

    return run


def _rewind(scheduler: Any) -> None:
    """What `set_timesteps` resets, without the time that it takes."""
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = None
    if hasattr(scheduler, "lower_order_nums"):
        scheduler.lower_order_nums = 0
        scheduler.model_outputs = [None] * scheduler.config.solver_order


def _shared_noise(shape: tuple[int, ...]) -> Any:
    """Makes diffusers' DDPM draw the engine's noise: stream k + 1 at step k."""
    seeds, draws = torch.arange(shape[0]), iter(range(1, STEPS + 1))

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        return ops.philox_normal(seeds, shape[1:], stream=next(draws))

    return mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", drawn)
