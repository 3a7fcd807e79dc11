"""The demo's baselines: the same jobs as one would write them with PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from aigc_engine import zoo
from aigc_engine.diffusion import VP
from aigc_engine.dispatch import use_backend
from aigc_engine.latents import draw
from aigc_engine.ops import philox_normal

T = TypeVar("T")


def on_reference(job: Callable[[], T]) -> T:
    """Runs the job with every op on its PyTorch reference."""
    with use_backend("reference"), torch.no_grad():
        return job()


def ddim(
    checkpoint: zoo.Checkpoint, labels: list[int], *, steps: int, guidance: float
) -> Callable[[], Tensor]:
    """DDIM in a Python loop with classifier-free guidance, on a model that predicts v.

    x0 = alpha x - sigma v, eps = sigma x + alpha v, x' = alpha' x0 + sigma' eps, at the last timestep of
    each of `steps` equal parts of the training chain; the last step ends without noise.
    """
    model: Any = checkpoint.model
    schedule = VP(checkpoint.config["schedule"]["name"], checkpoint.config["schedule"]["timesteps"])
    t = torch.linspace(schedule.T, 0, steps + 1)[:-1].round() - 1
    alpha, sigma = (torch.from_numpy(values) for values in schedule.alpha_sigma(t.numpy()))
    alpha = torch.cat([alpha, torch.ones(1)]).tolist()
    sigma = torch.cat([sigma, torch.zeros(1)]).tolist()
    n, c = len(labels), model.config
    label = torch.tensor(labels + [model.null_label] * n)

    def run() -> Tensor:
        x = philox_normal(torch.arange(n), (c.channels, c.image_size, c.image_size))
        for k in range(steps):
            cond, uncond = model(torch.cat([x, x]), t[k].expand(2 * n), label).chunk(2)
            v = uncond + guidance * (cond - uncond)
            x0, eps = alpha[k] * x - sigma[k] * v, sigma[k] * x + alpha[k] * v
            x = alpha[k + 1] * x0 + sigma[k + 1] * eps
        return x.clamp(-1, 1)

    return partial(on_reference, run)


def generate(checkpoint: zoo.Checkpoint, n: int) -> Callable[[], Tensor]:
    """A generator or decoder called as it is, on the latents of seeds 0 to n - 1."""
    model: Any = checkpoint.model
    scale = checkpoint.config.get("sampling", {}).get("truncation", 1.0)
    if checkpoint.family == "vae":
        noise = draw("plain", torch.arange(n), model.latent, scale)
        return partial(on_reference, lambda: model.decode(model.latents(noise, torch.arange(n) % 10)))
    label = None if model.num_classes is None else torch.arange(n) % model.num_classes
    return partial(
        on_reference, lambda: model(draw("plain", torch.arange(n), model.latent_dim, scale), label)
    )
