"""Solvers as rows of numbers: one row is one model evaluation and the linear update that follows it.

Every solver here is linear in tensors at hand. With x_k the model's input at evaluation k, out_k its output
and x0_k = p_k x_k + q_k out_k its estimate of the data,

    x_{k+1} = c0 x_k + c1 out_k + c2 x_{k-1} + c3 out_{k-1} + s noise,

and classifier-free guidance out = uncond + g (cond - uncond) splits c1 and c3 in two. Clipping x0, by a bound
or dynamically (`clip_sample`, `thresholding` in diffusers), is not linear, so it isn't here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from aigc_engine.diffusion.prediction import PREDICTIONS, data_coefficients
from aigc_engine.diffusion.schedule import EDM, Flow, Grid, Schedule
from aigc_engine.diffusion.spacing import Array, Convention, Spacing


@dataclass(frozen=True)
class Solver:
    """How a solver walks the grid.

    Args:
        convention: whose timesteps it visits.
        kind: "one_step" (first order), "heun" (two evaluations a step) or "multistep" (second order from
            the evaluation before).
        eta: share of fresh noise: 0 for an ODE solver, 1 for an ancestral one; None where the caller chooses.
    """

    convention: Convention
    kind: str
    eta: float | None


SOLVERS = {
    "ddpm": Solver("ddpm", "one_step", 1.0),
    "ddim": Solver("ddim", "one_step", None),
    "euler": Solver("sigma", "one_step", 0.0),
    "euler_ancestral": Solver("sigma", "one_step", 1.0),
    "heun": Solver("sigma", "heun", 0.0),
    "dpmpp_2m": Solver("multistep", "multistep", 0.0),
    "dpmpp_2m_sde": Solver("multistep", "multistep", 1.0),
    "flow_euler": Solver("sigma", "one_step", 0.0),
}
# From this many steps on, DPM-Solver++ keeps its last step at second order (diffusers' `lower_order_final`).
MANY_STEPS = 15


@dataclass(frozen=True)
class Recipe:
    """How one row of a batch is sampled.

    References:
        ddpm: J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239
        ddim: J. Song et al., "Denoising Diffusion Implicit Models", 2020, https://arxiv.org/abs/2010.02502
        euler, heun: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, algorithm 1, https://arxiv.org/abs/2206.00364
        euler_ancestral: K. Crowson, "k-diffusion", 2022, https://github.com/crowsonkb/k-diffusion
        dpmpp_2m, dpmpp_2m_sde: C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
        Probabilistic Models", 2022, algorithm 2 and appendix, https://arxiv.org/abs/2211.01095
        flow_euler: X. Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with
        Rectified Flow", 2022, https://arxiv.org/abs/2209.03003
        guidance: J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022,
        https://arxiv.org/abs/2207.12598

    Args:
        solver: a name in `SOLVERS`. heun's steps are straight in sigma / alpha: on schedules that end near
            alpha = 0 it wants Karras sigmas, or many steps.
        steps: number of steps of the whole trajectory.
        schedule: the noise schedule that the model was trained on.
        prediction: what the model predicts: "eps", "v", "x0", "flow" or "edm".
        spacing: where the nodes lie.
        eta: ddim's share of fresh noise, from 0 (deterministic) to 1 (as ddpm).
        guidance: g in out = uncond + g (cond - uncond); 1 needs no unconditional output.
        begin: None starts from noise; an integer starts that many steps into the trajectory, from an image
            with the noise of that time.
        lower_order_final: dpmpp takes the last of fewer than 15 steps at first order. A last step to zero
            noise always is of first order.

    Raises:
        ValueError: an unknown name, a value out of its range, or a combination that doesn't exist.
    """

    solver: str
    steps: int
    schedule: Schedule
    prediction: str
    spacing: Spacing = Spacing()
    eta: float = 0.0
    guidance: float = 1.0
    begin: int | None = None
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"sample: solver {self.solver!r}, expected one of {tuple(SOLVERS)}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"sample: prediction {self.prediction!r}, expected one of {PREDICTIONS}")
        if self.steps < 1:
            raise ValueError(f"sample: steps {self.steps}, expected at least 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"sample: guidance {self.guidance}, expected a finite number")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"sample: eta {self.eta}, expected a number from 0 to 1")
        if self.eta and SOLVERS[self.solver].eta is not None:
            raise ValueError(f"sample: eta {self.eta} with {self.solver}, expected 0; only ddim takes it")
        if self.begin is not None and not 0 <= self.begin < self.steps:
            raise ValueError(f"sample: begin {self.begin}, expected 0 to steps - 1 = {self.steps - 1}")
        if self.solver == "flow_euler" and not isinstance(self.schedule, Flow):
            raise ValueError(
                "sample: solver flow_euler off a flow, expected schedule='flow' or solver='euler'"
            )
        preconditioned = isinstance(self.schedule, EDM) and self.schedule.preconditioned
        if self.prediction == "edm" and not preconditioned:
            raise ValueError("sample: prediction edm without its preconditioning, expected schedule=EDM()")


@dataclass(frozen=True)
class Rows:
    """One recipe's evaluations in float64, guidance not yet split.

    Args:
        t: (E,) time given to the denoiser.
        coefficients: (E, 4) of x_k, out_k, x_{k-1}, out_{k-1}.
        noise_scale: (E,) standard deviation of the fresh noise.
        preview: (E, 2) p and q of the estimate x0_k = p x_k + q out_k.
        draws: (E,) evaluations after which diffusers' scheduler draws from its generator, needed or not.
        start_scale, init_scale: the starting state is start_scale image + init_scale noise.
    """

    t: Array
    coefficients: Array
    noise_scale: Array
    preview: Array
    draws: np.ndarray
    start_scale: float
    init_scale: float

    def __len__(self) -> int:
        return len(self.t)


@lru_cache(maxsize=256)
def solve(recipe: Recipe) -> Rows:
    """The rows of a recipe, whose guidance is left to `update_table`."""
    solver, begin = SOLVERS[recipe.solver], recipe.begin
    grid = _from_step(recipe.schedule.grid(recipe.steps, recipe.spacing, solver.convention), begin or 0)
    p, q = data_coefficients(recipe.prediction, recipe.schedule, grid.alpha, grid.sigma)
    eta = recipe.eta if solver.eta is None else solver.eta
    c_x, c_data, noise = _first_order(grid, eta)
    nodes = np.arange(len(grid))
    if solver.kind == "heun":
        nodes = (np.arange(2 * len(grid) - 1) + 1) // 2
        coefficients, noise = _heun(grid, p, q, c_x, c_data), np.zeros(len(nodes))
    else:
        weight = np.zeros(len(grid))
        if solver.kind == "multistep":
            few = recipe.lower_order_final and recipe.steps < MANY_STEPS
            weight = _history_weight(grid, few or grid.sigma_next[-1] == 0)
        coefficients = _with_history(p, q, c_x, c_data, weight)
    draws = np.full(len(nodes), eta > 0)
    if recipe.solver == "ddpm":
        draws &= grid.t > 0
    return Rows(
        t=grid.t[nodes],
        coefficients=coefficients,
        noise_scale=noise,
        preview=np.stack([p, q], axis=1)[nodes],
        draws=draws,
        start_scale=0.0 if begin is None else float(grid.alpha[0]),
        init_scale=grid.init_scale if begin is None else float(grid.sigma[0]),
    )


def _from_step(grid: Grid, begin: int) -> Grid:
    cut = {name: getattr(grid, name)[begin:] for name in ("t", "alpha", "sigma", "alpha_next", "sigma_next")}
    return replace(grid, **cut)


def _first_order(grid: Grid, eta: float) -> tuple[Array, Array, Array]:
    """Weights of x, x0 and noise in the step that holds x0 constant.

    With rho the ratio of the noise levels sigma / alpha after and before the step, fresh noise has standard
    deviation eta sigma' sqrt(1 - rho^2), and the noise already there shrinks so that both make up sigma':

        x' = c x + (alpha' - alpha c) x0 + eta sigma' sqrt(1 - rho^2) noise
        c = sigma' / sigma sqrt(1 - eta^2 (1 - rho^2))

    eta = 0 is DDIM, Euler (in sigma or in flow time) and DPM-Solver++ of first order; eta = 1 is DDPM's
    posterior, Euler ancestral and the SDE form of DPM-Solver++. They differ in their nodes only.
    """
    rho = grid.sigma_next * grid.alpha / (grid.alpha_next * grid.sigma)
    renewed = 1 - rho**2
    renewed[renewed < 1e-14] = 0.0  # a step that stays where it is, but for rounding
    c = grid.sigma_next / grid.sigma * np.sqrt(1 - eta**2 * renewed)
    return c, grid.alpha_next - grid.alpha * c, eta * grid.sigma_next * np.sqrt(renewed)


def _history_weight(grid: Grid, last_is_first_order: bool) -> Array:
    """w in x0 -> (1 + w) x0_k - w x0_{k-1}: half of this step over the step before, in log(alpha / sigma)."""
    weight = np.zeros(len(grid))
    inner = np.arange(1, len(grid) - last_is_first_order)
    with np.errstate(divide="ignore"):  # a flow starts at alpha = 0, an infinite step before: w = 0
        level = grid.sigma / grid.alpha
    step = np.log(level[inner] * grid.alpha_next[inner] / grid.sigma_next[inner])
    weight[inner] = step / (2 * np.log(level[inner - 1] / level[inner]))
    return weight


def _with_history(p: Array, q: Array, c_x: Array, c_data: Array, weight: Array) -> Array:
    """Rows of x' = c_x x + c_data ((1 + w) x0_k - w x0_{k-1})."""
    now, before = c_data * (1 + weight), -c_data * weight
    p_before, q_before = np.append(0.0, p[:-1]), np.append(0.0, q[:-1])
    return np.stack([c_x + now * p, now * q, before * p_before, before * q_before], axis=1)


def _heun(grid: Grid, p: Array, q: Array, c_x: Array, c_data: Array) -> Array:
    """Predictor and corrector rows in turn; the last step has a predictor only.

    In y = x / kappa and u = sigma / kappa, dy/du = (y - x0) / u; kappa is alpha, or alpha + sigma for flows.
    The corrector is evaluated at the predicted state x_k and starts again from x_{k-1}:
    y' = y + (u' - u) / 2 ((y - x0) / u + (y_pred - x0_pred) / u').
    """
    kappa = grid.alpha + grid.sigma if grid.unit_sum else grid.alpha
    u = grid.sigma / kappa
    k0, k1, u0, u1 = kappa[:-1], kappa[1:], u[:-1], u[1:]
    slope, slope_pred = (u1 - u0) / (2 * u0), (u1 - u0) / (2 * u1)
    rows = np.zeros((2 * len(grid) - 1, 4))
    rows[0::2, 0], rows[0::2, 1] = c_x + c_data * p, c_data * q
    rows[1::2, 0] = slope_pred * (1 - k1 * p[1:])
    rows[1::2, 1] = -k1 * slope_pred * q[1:]
    rows[1::2, 2] = k1 / k0 * (1 + slope) - k1 * slope * p[:-1]
    rows[1::2, 3] = -k1 * slope * q[:-1]
    return rows


@dataclass(frozen=True)
class UpdateTable:
    """The evaluations of a batch, one row per sample; rows are sorted by their number, most first.

    x_{k+1} = c0 x_k + c1 cond_k + c2 uncond_k + c3 x_{k-1} + c4 cond_{k-1} + c5 uncond_{k-1} + s noise.

    Args:
        timesteps: (E, B) float32, what the denoiser gets as t at evaluation k.
        coefficients: (E, B, 6) float32, computed in float64.
        noise_scale: s, (E, B) float32.
        streams: (E, B) int64, stream of the noise: k + 1.
        active: (E,) rows [0, active[k]) are evaluated at k.
        init_scale, start_scale: (B,) float32; the starting state is start_scale image + init_scale noise.
        preview: (E, B, 3) float32, x0_k = p x_k + q cond_k + r uncond_k.
        evaluations: (B,) number of evaluations of each row.
        order: (B,) int64, the caller's index of each row.
        guided: whether any row needs the unconditional output.
        draws, noisy, remembers: (E,) at k, diffusers draws noise; s isn't 0; c3 to c5 aren't 0.
    """

    timesteps: Tensor
    coefficients: Tensor
    noise_scale: Tensor
    streams: Tensor
    active: tuple[int, ...]
    init_scale: Tensor
    start_scale: Tensor
    preview: Tensor
    evaluations: tuple[int, ...]
    order: Tensor
    guided: bool
    draws: tuple[bool, ...]
    noisy: tuple[bool, ...]
    remembers: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.active)

    def to(self, device: torch.device) -> UpdateTable:
        """The table with what the updates read on that device; `order` stays on the host."""
        names = (
            "timesteps",
            "coefficients",
            "noise_scale",
            "streams",
            "init_scale",
            "start_scale",
            "preview",
        )
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def update_table(recipes: Sequence[Recipe]) -> UpdateTable:
    """The table of a batch with one recipe per row."""
    distinct = {recipe: index for index, recipe in enumerate(dict.fromkeys(recipes))}
    solved = [solve(replace(recipe, guidance=1.0)) for recipe in distinct]
    which = np.array([distinct[recipe] for recipe in recipes])
    lengths = np.array([len(rows) for rows in solved])
    order = np.argsort(-lengths[which], kind="stable")
    which = which[order]
    E, R = int(lengths.max()), len(solved)
    t, noise, draws = np.zeros((E, R)), np.zeros((E, R)), np.zeros(E, dtype=bool)
    coefficients, preview = np.zeros((E, R, 6)), np.zeros((E, R, 3))
    for r, (recipe, rows) in enumerate(zip(distinct, solved, strict=True)):
        n, split = len(rows), np.array([recipe.guidance, 1.0 - recipe.guidance])
        t[:n, r], noise[:n, r] = rows.t, rows.noise_scale
        coefficients[:n, r, [0, 3]] = rows.coefficients[:, [0, 2]]
        coefficients[:n, r, 1:3] = rows.coefficients[:, 1:2] * split
        coefficients[:n, r, 4:6] = rows.coefficients[:, 3:4] * split
        preview[:n, r, 0], preview[:n, r, 1:] = rows.preview[:, 0], rows.preview[:, 1:] * split
        draws[:n] |= rows.draws
    return UpdateTable(
        timesteps=_float32(t[:, which]),
        coefficients=_float32(coefficients[:, which]),
        noise_scale=_float32(noise[:, which]),
        streams=torch.arange(1, E + 1)[:, None].repeat(1, len(which)),
        active=tuple((lengths[which] > np.arange(E)[:, None]).sum(axis=1).tolist()),
        init_scale=_float32(np.array([rows.init_scale for rows in solved])[which]),
        start_scale=_float32(np.array([rows.start_scale for rows in solved])[which]),
        preview=_float32(preview[:, which]),
        evaluations=tuple(lengths[which].tolist()),
        order=torch.from_numpy(order.astype(np.int64)),
        guided=any(recipe.guidance != 1.0 for recipe in distinct),
        draws=tuple(draws.tolist()),
        noisy=tuple((noise != 0).any(axis=1).tolist()),
        remembers=tuple((coefficients[..., 3:] != 0).any(axis=(1, 2)).tolist()),
    )


def _float32(values: Array) -> Tensor:
    return torch.from_numpy(values).to(torch.float32)
