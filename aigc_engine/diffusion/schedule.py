"""Noise schedules x_t = alpha_t x0 + sigma_t eps, and the nodes that a solver visits on them.

alpha_t is the weight of the data, sigma_t that of the unit normal noise, and sigma_t / alpha_t the noise
level in units of the data. Time runs from noise (large t) to data (t = 0). Float64 on the host throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import torch

from aigc_engine.diffusion.spacing import Array, Convention, Spacing, discrete_timesteps, spread_sigmas

BETAS = ("linear", "scaled_linear", "cosine")


@dataclass(frozen=True)
class Grid:
    """The nodes of one run: step k leads from (alpha, sigma)[k] to (alpha_next, sigma_next)[k].

    Args:
        t: (N,) what the denoiser gets as time.
        alpha, sigma: (N,) scales of data and noise where the model is evaluated.
        alpha_next, sigma_next: (N,) scales where the step ends: those of node k + 1, but ddim steps by T // N
            whatever the spacing.
        init_scale: standard deviation of the starting noise.
        unit_sum: the ODE runs in t = sigma / (alpha + sigma), as flows do, and not in sigma / alpha.
    """

    t: Array
    alpha: Array
    sigma: Array
    alpha_next: Array
    sigma_next: Array
    init_scale: float
    unit_sum: bool = False

    def __len__(self) -> int:
        return len(self.t)


def beta_schedule(name: str, T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Array:
    """Variances beta_t of the forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t).

    linear: from beta_start to beta_end. scaled_linear: linear in sqrt(beta).
    cosine: 1 - beta_t = f((t + 1) / T) / f(t / T), f(u) = cos^2(pi/2 (u + 0.008) / 1.008), and beta at most
    0.999.

    References:
        J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (linear),
        https://arxiv.org/abs/2006.11239
        R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022
        (scaled_linear), https://arxiv.org/abs/2112.10752
        A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 17 (cosine),
        https://arxiv.org/abs/2102.09672

    Returns:
        (T,) float32 values, the very ones of diffusers, in float64.

    Raises:
        ValueError: unknown name.
    """
    if name == "linear":
        return torch.linspace(beta_start, beta_end, T).double().numpy()
    if name == "scaled_linear":
        return (torch.linspace(beta_start**0.5, beta_end**0.5, T) ** 2).double().numpy()
    if name == "cosine":
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999).astype(np.float32).astype(np.float64)
    raise ValueError(f"sample: schedule betas {name!r}, expected one of {BETAS}")


@dataclass(frozen=True)
class VP:
    """Variance-preserving diffusion: alpha_t^2 = prod_{s <= t} (1 - beta_s), sigma_t^2 = 1 - alpha_t^2.

    Models are trained on float32 tables, and near t = 0 that rounding moves sigma_t by 1e-4 of itself. So
    beta_t and alpha_t^2 are rounded to float32 as in training code and diffusers; the rest is float64.

    References:
        J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239

    Args:
        betas: a name of `beta_schedule`, or the T values themselves.
        T: number of training timesteps; the denoiser's t is in [0, T - 1].
        beta_start, beta_end: ends of the linear and scaled_linear schedules.

    Raises:
        ValueError: unknown name, or values out of their range.
    """

    betas: str | tuple[float, ...] = "linear"
    T: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    default_prediction: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        _check_training_steps(self.T)
        if not isinstance(self.betas, str) and len(self.betas) != self.T:
            raise ValueError(f"sample: schedule betas has {len(self.betas)} values, expected T = {self.T}")
        if not np.all((self.beta > 0) & (self.beta < 1)):
            raise ValueError("sample: schedule betas outside (0, 1), expected variances in it")

    @cached_property
    def beta(self) -> Array:
        """beta_t, (T,)."""
        if isinstance(self.betas, str):
            return beta_schedule(self.betas, self.T, self.beta_start, self.beta_end)
        return np.asarray(self.betas, dtype=np.float32).astype(np.float64)

    @cached_property
    def sigmas(self) -> Array:
        """sigma_t / alpha_t at the integer timesteps, (T,), increasing."""
        alpha_bar = torch.from_numpy(1 - self.beta).float().cumprod(0).double().numpy()
        return np.sqrt((1 - alpha_bar) / alpha_bar)

    def alpha_sigma(self, t: float | Array) -> tuple[Array, Array]:
        """alpha_t and sigma_t at t in [0, T - 1]: sigma_t / alpha_t is linear between integers."""
        return _unit_variance(np.interp(np.asarray(t), np.arange(self.T), self.sigmas))

    def timestep(self, sigma: Array) -> Array:
        """The t at which sigma_t / alpha_t is `sigma`, interpolated in log sigma, within [0, T - 1]."""
        return np.interp(np.log(sigma), np.log(self.sigmas), np.arange(self.T))

    def grid(self, steps: int, spacing: Spacing, convention: Convention) -> Grid:
        """Nodes as diffusers' DDPM, DDIM, Euler (ancestral, Heun) and DPM-Solver multistep lay them."""
        if steps > self.T:
            raise ValueError(f"sample: steps {steps}, expected at most the schedule's T = {self.T}")
        chain = convention in ("ddpm", "ddim")
        if chain and spacing.sigmas is not None:
            raise ValueError(
                f"sample: spacing sigmas {spacing.sigmas!r} with {convention}, expected None; "
                "euler and euler_ancestral take the same steps at any sigmas"
            )
        kind = spacing.timesteps or ("leading" if chain else "linspace")
        t = discrete_timesteps(kind, self.T, steps, spacing.steps_offset, convention)
        level = np.interp(t, np.arange(self.T), self.sigmas)
        if spacing.sigmas is not None:
            level, t = self._respaced(level, spacing, spacing.sigmas, convention)
        last = 0.0 if spacing.final == "zero" else float(self.sigmas[0])
        following = np.append(level[1:], last)
        if convention == "ddim":
            target = t.astype(np.int64) - self.T // steps
            following = np.where(target >= 0, self.sigmas[target], last)
        alpha, sigma = _unit_variance(level)
        alpha_next, sigma_next = _unit_variance(following)
        if convention == "sigma":
            # These solvers work in x / alpha and end there, whatever noise is left.
            alpha_next[-1], sigma_next[-1] = 1.0, last
        pure_noise = convention == "sigma" and kind != "leading"
        return Grid(t, alpha, sigma, alpha_next, sigma_next, float(sigma[0]) if pure_noise else 1.0)

    def _respaced(
        self, level: Array, spacing: Spacing, kind: str, convention: Convention
    ) -> tuple[Array, Array]:
        """Sigmas spread anew, and their timesteps, which multistep solvers make integers."""
        ends = (level[0], level[-1]) if convention == "sigma" else (self.sigmas[-1], self.sigmas[0])
        spread = spread_sigmas(spacing, kind, ends, len(level))
        t = self.timestep(spread)
        if convention == "multistep":
            nearest = t.round()
            # diffusers rounds Karras timesteps and truncates the others; at the ends of the table, where
            # rounding errors would decide, the integer is meant.
            keep = (kind == "karras" and self.betas != "cosine") | (np.abs(t - nearest) < 1e-6)
            t = np.where(keep, nearest, np.floor(t))
        return spread, t


@dataclass(frozen=True)
class Flow:
    """Rectified flow: x_t = (1 - t) x0 + t eps with t in [0, 1]; the model predicts v = eps - x0.

    Times are shifted towards noise: t -> shift t / (1 + (shift - 1) t).

    References:
        X. Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2022, https://arxiv.org/abs/2209.03003
        Y. Lipman et al., "Flow Matching for Generative Modeling", 2022, https://arxiv.org/abs/2210.02747
        P. Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
        eq. 23 (shift), https://arxiv.org/abs/2403.03206

    Args:
        shift: larger spends more steps near noise (Stable Diffusion 3: 3).
        time_scale: the denoiser gets time_scale t (models of diffusers: 1000).
        T: linspace spacing ends at the shifted 1 / T, as in diffusers; trailing is t = 1 - k / n, shifted.

    Raises:
        ValueError: values out of their range.
    """

    shift: float = 1.0
    time_scale: float = 1.0
    T: int = 1000
    default_prediction: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        _check_positive("shift", self.shift)
        _check_positive("time_scale", self.time_scale)
        _check_training_steps(self.T)

    def alpha_sigma(self, t: float | Array) -> tuple[Array, Array]:
        """1 - t and t."""
        return 1 - np.asarray(t, dtype=np.float64), np.asarray(t, dtype=np.float64)

    def shifted(self, t: float | Array) -> Array:
        """shift t / (1 + (shift - 1) t)."""
        return np.asarray(self.shift * np.asarray(t) / (1 + (self.shift - 1) * np.asarray(t)))

    def grid(self, steps: int, spacing: Spacing, convention: Convention) -> Grid:
        """Nodes as diffusers' FlowMatchEulerDiscrete lays them (linspace), or evenly to t = 0 (trailing)."""
        if spacing.timesteps == "leading":
            raise ValueError("sample: spacing leading on a flow, expected linspace or trailing")
        if spacing.timesteps == "trailing":
            t = self.shifted(np.linspace(1.0, 0.0, steps + 1)[:-1])
        else:
            t = self.shifted(np.linspace(1.0, float(self.shifted(1 / self.T)), steps))
        if spacing.sigmas is not None:
            t = spread_sigmas(spacing, spacing.sigmas, (t[0], t[-1]), steps)
            if t[0] > 1:
                raise ValueError(f"sample: spacing sigma_max {t[0]!r} on a flow, expected at most 1")
        following = np.append(t[1:], 0.0 if spacing.final == "zero" else t[-1])
        return Grid(self.time_scale * t, 1 - t, t, 1 - following, following, init_scale=1.0, unit_sum=True)


@dataclass(frozen=True)
class EDM:
    """Diffusion in sigma space with preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), c_in = 1 / sqrt(sigma^2 + s^2) and
    c_noise = ln(sigma) / 4, where x = x0 + sigma eps. The state is c_in x, so that alpha = c_in and
    sigma_t = c_in sigma; prediction "edm" folds c_skip and c_out into the solver.

    References:
        T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1,
        https://arxiv.org/abs/2206.00364

    Args:
        sigma_min, sigma_max: smallest and largest noise level, in units of the data.
        sigma_data: s, standard deviation of the data.
        preconditioned: False for a denoiser D(x; sigma) that scales by itself: it gets x and sigma, and
            predicts x0.

    Raises:
        ValueError: values out of their range.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    preconditioned: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sample: schedule sigma_min {self.sigma_min!r} and sigma_max {self.sigma_max!r}, "
                "expected 0 < sigma_min < sigma_max"
            )
        _check_positive("sigma_data", self.sigma_data)

    @property
    def default_prediction(self) -> str:
        return "edm" if self.preconditioned else "x0"

    def c_in(self, sigma: Array) -> Array:
        """Scale of the model's input."""
        if not self.preconditioned:
            return np.ones_like(sigma)
        return 1 / np.sqrt(sigma**2 + self.sigma_data**2)

    def grid(self, steps: int, spacing: Spacing, convention: Convention) -> Grid:
        """Nodes between sigma_max and sigma_min, Karras unless asked otherwise, and a last step to zero."""
        if spacing.timesteps is not None:
            raise ValueError(
                f"sample: spacing {spacing.timesteps} on EDM, which has no training timesteps, "
                "expected karras, exponential or polyexponential"
            )
        ends = (self.sigma_max, self.sigma_min)
        level = spread_sigmas(spacing, spacing.sigmas or "karras", ends, steps)
        alpha = self.c_in(level)
        following = np.append(level[1:], 0.0 if spacing.final == "zero" else level[-1])
        alpha_next = np.append(alpha[1:], 1.0)
        t = np.log(level) / 4 if self.preconditioned else level
        # Standard deviation of x0 + sigma eps for data of unit variance, as in diffusers.
        start = float(np.sqrt(level[0] ** 2 + 1) * alpha[0])
        return Grid(t, alpha, alpha * level, alpha_next, alpha_next * following, init_scale=start)


Schedule: TypeAlias = VP | Flow | EDM
SCHEDULES = (*BETAS, "flow", "edm")


def schedule_of(value: str | Schedule, T: int = 1000) -> Schedule:
    """A schedule from its name ("linear", "scaled_linear", "cosine", "flow", "edm") or from itself.

    "scaled_linear" has the ends of Stable Diffusion, 0.00085 and 0.012. T goes with a name.

    Raises:
        ValueError: unknown name.
        TypeError: neither a name nor a schedule.
    """
    if isinstance(value, (VP, Flow, EDM)):
        return value
    if not isinstance(value, str):
        raise TypeError(f"sample: schedule {type(value).__name__}, expected a name or VP, Flow, EDM")
    if value not in SCHEDULES:
        raise ValueError(f"sample: schedule {value!r}, expected one of {SCHEDULES} or VP, Flow, EDM")
    if value == "scaled_linear":
        return VP(value, T, beta_start=0.00085, beta_end=0.012)
    return VP(value, T) if value in BETAS else Flow(T=T) if value == "flow" else EDM()


def _unit_variance(level: Array) -> tuple[Array, Array]:
    """alpha_t and sigma_t with alpha_t^2 + sigma_t^2 = 1, from their ratio sigma_t / alpha_t."""
    alpha = 1 / np.sqrt(1 + level**2)
    return alpha, alpha * level


def _check_training_steps(T: object) -> None:
    if type(T) is not int or T < 2:
        raise ValueError(f"sample: schedule T {T!r}, expected an int >= 2")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"sample: schedule {name} {value!r}, expected a positive finite number")
