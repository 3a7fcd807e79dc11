"""What a model predicts, as the pair (p, q) of its estimate of the data: x0 = p x_t + q out."""

from __future__ import annotations

import numpy as np

from aigc_engine.diffusion.schedule import EDM, Schedule
from aigc_engine.diffusion.spacing import Array

PREDICTIONS = ("eps", "v", "x0", "flow", "edm")


def data_coefficients(prediction: str, schedule: Schedule, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """p and q with x0 = p x_t + q out, for x_t = alpha x0 + sigma eps.

    eps: out = eps, x0 = (x_t - sigma out) / alpha.
    v: out = alpha eps - sigma x0, x0 = (alpha x_t - sigma out) / (alpha^2 + sigma^2).
    x0: out = x0 ("sample" in diffusers).
    flow: out = eps - x0, x0 = (x_t - sigma out) / (alpha + sigma).
    edm: x0 = c_skip x_t / alpha + c_out out (see `EDM`).

    References:
        J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (eps), https://arxiv.org/abs/2006.11239
        T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022 (v),
        https://arxiv.org/abs/2202.00512
        X. Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2022 (flow), https://arxiv.org/abs/2209.03003

    Args:
        prediction: one of `PREDICTIONS`.
        schedule: read by edm only, for sigma_data.
        alpha, sigma: (N,) scales of data and noise.

    Returns:
        p and q, (N,) float64 each.

    Raises:
        ValueError: eps where alpha is 0: nothing is left of the data in x_t.
    """
    if prediction == "eps":
        if np.any(alpha == 0):
            raise ValueError(
                "sample: prediction eps on a schedule that starts at alpha = 0, expected v or flow"
            )
        return 1 / alpha, -sigma / alpha
    if prediction == "v":
        total = alpha**2 + sigma**2
        return alpha / total, -sigma / total
    if prediction == "x0":
        return np.zeros_like(alpha), np.ones_like(alpha)
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    assert isinstance(schedule, EDM)  # `Recipe` has checked it
    level, data = sigma / alpha, schedule.sigma_data
    c_skip = data**2 / (level**2 + data**2)
    c_out = level * data / np.sqrt(level**2 + data**2)
    return c_skip / alpha, c_out
