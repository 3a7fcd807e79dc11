"""Images per second of the zoo's VAE: sampling and reconstruction against the plain module."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine import latents, zoo
from aigc_engine.evaluate.held_out import held_out_digits
from aigc_engine.vae import VaeSampler
from bench.case import Case, Work, require
from bench.reference import max_difference, on_reference

NAME = "digits-vae"
BOUND = 1e-4


def cases() -> Iterator[Case]:
    for n in (1, 64, 512):
        yield Case("vae", f"sample-{n}", "plain module + torch.randn", partial(_sample, n))
    yield Case("vae", "reconstruct-256", "plain module", partial(_reconstruct, 256))


def _sample(n: int) -> Work:
    checkpoint = zoo.load(NAME)
    model: Any = checkpoint.model
    sampler = VaeSampler.from_checkpoint(checkpoint)
    noise = torch.Generator().manual_seed(0)

    def theirs() -> Tensor:
        return model.decode(torch.randn(n, sampler.latent_dim, generator=noise) * sampler.truncation)

    def verify() -> float:
        z = latents.draw("bench", torch.arange(n), sampler.latent_dim, sampler.truncation)
        expected = on_reference(lambda: model.decode(z))()
        return require(f"sample-{n}", max_difference(sampler.sample(n, seed=0), expected), BOUND)

    return Work(partial(sampler.sample, n, seed=0), on_reference(theirs), verify, items=n, unit="images")


def _reconstruct(n: int) -> Work:
    checkpoint = zoo.load(NAME)
    model: Any = checkpoint.model
    sampler = VaeSampler.from_checkpoint(checkpoint)
    images = held_out_digits()[0][:n]
    ours, theirs = partial(sampler.reconstruct, images), on_reference(partial(model, images))

    def verify() -> float:
        return require(f"reconstruct-{n}", max_difference(ours(), theirs()), BOUND)

    return Work(ours, theirs, verify, items=n, unit="images")
