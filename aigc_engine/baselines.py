"""The jobs of the zoo as one would write them with PyTorch alone: what `demo` and `bench` compare with.

The noise is the engine's, drawn beforehand, so that results can be compared; `torch.randn` of the same shape
is drawn in its place while the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from aigc_engine.diffusion import VP
from aigc_engine.dispatch import use_backend
from aigc_engine.latents import draw
from aigc_engine.ops import philox_normal
from aigc_engine.zoo import Checkpoint

T = TypeVar("T")


def on_reference(job: Callable[[], T]) -> Callable[[], T]:
    """The job with every op on its PyTorch reference."""

    def run() -> T:
        with use_backend("reference"), torch.no_grad():
            return job()

    return run


def generate(checkpoint: Checkpoint, n: int) -> Callable[[], Tensor]:
    """A GAN's generator or a VAE's decoder called as it is, on the latents of seeds 0 to n - 1."""
    model: Any = checkpoint.model
    scale = checkpoint.config.get("sampling", {}).get("truncation", 1.0)
    vae = checkpoint.family == "vae"
    classes = model.config.num_classes if vae else model.num_classes
    label = None if classes is None else torch.arange(n) % classes
    z = draw("baseline", torch.arange(n), model.latent if vae else model.latent_dim, scale)

    def run() -> Tensor:
        torch.randn(z.shape)
        return model.decode(model.latents(z, label)) if vae else model(z, label)

    return on_reference(run)


def ddim(checkpoint: Checkpoint, labels: list[int], *, steps: int, guidance: float) -> Callable[[], Tensor]:
    """DDIM in a Python loop with classifier-free guidance, on a model that predicts v.

    x0 = alpha x - sigma v, eps = sigma x + alpha v, x' = alpha' x0 + sigma' eps, at the last timestep of
    each of `steps` equal parts of the training chain; the last step ends without noise.
    """
    model: Any = checkpoint.model
    config, n = checkpoint.config["schedule"], len(labels)
    schedule = VP(config["name"], config["timesteps"])
    t = torch.linspace(schedule.T, 0, steps + 1)[:-1].round() - 1
    scales = [torch.from_numpy(values) for values in schedule.alpha_sigma(t.numpy())]
    alpha, sigma = [*scales[0].tolist(), 1.0], [*scales[1].tolist(), 0.0]
    label = torch.tensor(labels + [model.null_label] * n)
    shape = (model.config.channels, model.config.image_size, model.config.image_size)
    noise = philox_normal(torch.arange(n), shape)

    def run() -> Tensor:
        torch.randn(noise.shape)
        x = noise
        for k in range(steps):
            cond, uncond = model(torch.cat([x, x]), t[k].expand(2 * n), label).chunk(2)
            v = uncond + guidance * (cond - uncond)
            x0, eps = alpha[k] * x - sigma[k] * v, sigma[k] * x + alpha[k] * v
            x = alpha[k + 1] * x0 + sigma[k + 1] * eps
        return x.clamp(-1, 1)

    return on_reference(run)
