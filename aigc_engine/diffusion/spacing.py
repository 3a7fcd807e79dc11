"""Where a solver evaluates its model: timesteps and noise levels, in the conventions of diffusers.

Time runs from noise to data: the first node is the noisiest. Everything here is float64 on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Convention = Literal["ddpm", "ddim", "sigma", "multistep"]

TIMESTEPS = ("leading", "linspace", "trailing")
SIGMAS = ("karras", "exponential", "polyexponential")
FINALS = ("zero", "sigma_min")
DEFAULT_RHO = {"karras": 7.0, "exponential": 1.0, "polyexponential": 1.0}


@dataclass(frozen=True)
class Spacing:
    """How the nodes of a solver are spread over the noise levels of a schedule.

    References:
        S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, table 2 (leading,
        linspace, trailing), https://arxiv.org/abs/2305.08891
        T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, eq. 5
        (karras), https://arxiv.org/abs/2206.00364
        K. Crowson, "k-diffusion", 2022 (exponential, polyexponential),
        https://github.com/crowsonkb/k-diffusion

    Args:
        timesteps: "leading", "linspace" or "trailing"; None is the solver's usual one (leading for ddpm and
            ddim, linspace for the others).
        sigmas: None keeps the noise levels of the timesteps. "karras", "exponential" and "polyexponential"
            spread them anew between the same ends; the timesteps follow by interpolation in log sigma.
        rho: exponent of karras (7) and polyexponential (1) sigmas.
        sigma_min, sigma_max: other ends of those sigmas, in units of the data.
        steps_offset: added to leading timesteps (Stable Diffusion 1 and 2: 1).
        final: noise level after the last step: "zero", or "sigma_min", the schedule's smallest
            (`set_alpha_to_one=False` of DDIM in diffusers).

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    timesteps: str | None = None
    sigmas: str | None = None
    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    steps_offset: int = 0
    final: str = "zero"

    def __post_init__(self) -> None:
        for name, allowed in (("timesteps", TIMESTEPS), ("sigmas", SIGMAS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"sample: spacing {name} {value!r}, expected one of {allowed} or None")
        if self.final not in FINALS:
            raise ValueError(f"sample: spacing final {self.final!r}, expected one of {FINALS}")
        if type(self.steps_offset) is not int or self.steps_offset < 0:
            raise ValueError(f"sample: spacing steps_offset {self.steps_offset!r}, expected an int >= 0")
        for name in ("rho", "sigma_min", "sigma_max"):
            value = getattr(self, name)
            if value is None:
                continue
            if self.sigmas is None:
                raise ValueError(
                    f"sample: spacing {name} {value!r} without sigmas, expected None; name sigmas"
                )
            if not 0 < value < math.inf:
                raise ValueError(f"sample: spacing {name} {value!r}, expected a positive finite number")


def spacing_of(value: str | Spacing | None) -> Spacing:
    """A `Spacing` from its name ("trailing", "karras", ...), from itself, or from None (the solver's usual).

    Raises:
        ValueError: unknown name.
        TypeError: none of these.
    """
    if value is None or isinstance(value, Spacing):
        return value or Spacing()
    if not isinstance(value, str):
        raise TypeError(f"sample: spacing {type(value).__name__}, expected a name or a Spacing")
    if value not in TIMESTEPS + SIGMAS:
        raise ValueError(f"sample: spacing {value!r}, expected one of {TIMESTEPS + SIGMAS}")
    return Spacing(sigmas=value) if value in SIGMAS else Spacing(timesteps=value)


def discrete_timesteps(kind: str, T: int, steps: int, offset: int, convention: Convention) -> Array:
    """Timesteps out of 0..T-1, noisiest first, rounded as diffusers' schedulers do.

    With n steps: leading k floor(T / n) + offset, linspace k (T - 1) / (n - 1), trailing T - k T / n - 1.
    Multistep solvers lay n + 1 nodes and drop the last for leading and linspace, so that no step starts at
    t = 0. Only the sigma convention keeps fractions.

    Raises:
        ValueError: a timestep is above T - 1, or two are equal.
    """
    nodes = steps + (convention == "multistep" and kind != "trailing")
    if kind == "leading":
        t = np.arange(nodes, dtype=np.float64)[::-1] * (T // nodes) + offset
    elif kind == "linspace":
        t = np.linspace(0, T - 1, nodes)[::-1]
        # The denoiser receives float32, so that is the time at which sigma is taken.
        t = t.astype(np.float32).astype(np.float64) if convention == "sigma" else np.round(t)
    else:
        # By rounding, arange may yield one node too many, at t = -1.
        t = np.round(np.arange(T, 0, -T / steps, dtype=np.float64)) - 1
    t = t[:steps]
    if t[0] > T - 1:
        raise ValueError(
            f"sample: spacing steps_offset {offset} puts the first timestep at {t[0]:.0f}, "
            f"expected at most {T - 1}; use a smaller offset or fewer steps"
        )
    if np.any(np.diff(t) >= 0):
        raise ValueError(f"sample: steps {steps} repeats timesteps ({kind} out of {T}), expected fewer")
    return t


def spread_sigmas(spacing: Spacing, kind: str, ends: tuple[float, float], steps: int) -> Array:
    """Noise levels between the ends (high, low), which the spacing may move.

    With r = k / (n - 1): karras (high^(1/rho) + r (low^(1/rho) - high^(1/rho)))^rho; exponential is linear in
    log sigma; polyexponential log sigma = log low + (1 - r)^rho log(high / low).
    """
    high, low = spacing.sigma_max or float(ends[0]), spacing.sigma_min or float(ends[1])
    if high < low:
        raise ValueError(f"sample: spacing sigma_max {high!r}, expected at least sigma_min = {low!r}")
    ramp = np.linspace(0.0, 1.0, steps)
    rho = spacing.rho or DEFAULT_RHO[kind]
    if kind == "karras":
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    power = rho if kind == "polyexponential" else 1.0
    return np.exp(math.log(low) + (1 - ramp) ** power * math.log(high / low))
