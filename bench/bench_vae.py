"""Images per second of the zoo's VAE: sampling and reconstruction against the plain module."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from aigc_engine import baselines, zoo
from aigc_engine.evaluate.held_out import held_out_digits
from aigc_engine.vae import VaeSampler
from bench.bench_gan import BOUND, generation
from bench.case import Case, Work, require
from bench.check import max_difference

NAME = "digits-vae"


def cases() -> Iterator[Case]:
    for n in (1, 64, 512):
        yield Case("vae", f"sample-{n}", "plain module", partial(generation, NAME, n))
    yield Case("vae", "reconstruct-256", "plain module", partial(_reconstruct, 256))


def _reconstruct(n: int) -> Work:
    checkpoint = zoo.load(NAME)
    model: Any = checkpoint.model
    images = held_out_digits()[0][:n]
    ours = partial(VaeSampler.from_checkpoint(checkpoint).reconstruct, images)
    theirs = baselines.on_reference(partial(model, images))

    def verify() -> float:
        return require(f"reconstruct-{n}", max_difference(ours(), theirs()), BOUND)

    return Work(ours, theirs, verify, items=n, unit="images")
