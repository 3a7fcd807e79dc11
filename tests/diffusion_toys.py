"""Denoisers with known answers, and the solvers' rows run in float64 on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_engine.diffusion.solver import Recipe, solve


def column(t, x: Tensor) -> Tensor:
    """t (rows,) or () against x (rows, ...)."""
    t = torch.as_tensor(t).to(x.dtype)
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def upstream_toy(x: Tensor, t, cond=None) -> Tensor:
    """The model of diffusers' own scheduler tests."""
    t = column(t, x)
    return x * t / (t + 1)


def mlp(x: Tensor, t, cond=None) -> Tensor:
    """Mixes the elements of a row, differently at every t; rows don't see each other."""
    h = x.flatten(1)
    n = h.shape[1]
    # An outer sum in place of a weight matrix: no BLAS, whose bits depend on the number of rows.
    mixed = (h * torch.linspace(-1, 1, n, dtype=x.dtype)).flip(1) + h.roll(1, 1) * 0.5
    return (torch.tanh(mixed + column(t, h) / 1000) * 0.7 + 0.2 * h).reshape(x.shape)


def march(recipe: Recipe, noise: Tensor, model, draw=None) -> list[Tensor]:
    """States x_0, x_1, ... of a recipe without guidance, in noise's dtype."""
    rows = solve(recipe)
    states, outputs = [noise * rows.init_scale], []
    for k in range(len(rows)):
        outputs.append(model(states[k], float(rows.t[k])))
        c = rows.coefficients[k]
        x = c[0] * states[k] + c[1] * outputs[k]
        if k:
            x = x + c[2] * states[k - 1] + c[3] * outputs[k - 1]
        if draw is not None and rows.draws[k]:
            x = x + rows.noise_scale[k] * draw()
        states.append(x)
    return states


def gaussian_x0(x: Tensor, alpha: float, sigma: float, mean: float, deviation: float) -> Tensor:
    """E[x0 | x_t = x] for x0 ~ N(mean, deviation^2)."""
    gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
    return mean + gain * (x - alpha * mean)
