"""Images per second of the zoo's generators: the sampler against the plain module on torch's own noise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine import latents, zoo
from aigc_engine.gan import GanSampler
from bench.case import Case, Work, require
from bench.reference import max_difference, on_reference

BOUND = 1e-4


def cases() -> Iterator[Case]:
    for name in ("digits-gan", "digits-mlp-gan"):
        for n in (1, 64, 512):
            yield Case("gan", f"{name}-{n}", "plain module + torch.randn", partial(_work, name, n))


def _work(name: str, n: int) -> Work:
    checkpoint = zoo.load(name)
    generator: Any = checkpoint.model
    sampler = GanSampler.from_checkpoint(checkpoint)
    labels = None if sampler.num_classes is None else torch.arange(n) % sampler.num_classes
    noise = torch.Generator().manual_seed(0)

    def theirs() -> Tensor:
        return generator(torch.randn(n, sampler.latent_dim, generator=noise) * sampler.truncation, labels)

    def verify() -> float:
        z = latents.draw("bench", torch.arange(n), sampler.latent_dim, sampler.truncation)
        expected = on_reference(lambda: generator(z, labels))()
        return require(f"{name}-{n}", max_difference(sampler.sample(n, seed=0), expected), BOUND)

    return Work(partial(sampler.sample, n, seed=0), on_reference(theirs), verify, items=n, unit="images")
