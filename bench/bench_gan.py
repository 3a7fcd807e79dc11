"""Images per second of the zoo's generators: the sampler against the plain module."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from aigc_engine import baselines, zoo
from aigc_engine.load import sampler_of
from bench.case import Case, Work, require
from bench.check import max_difference

BOUND = 1e-4


def cases() -> Iterator[Case]:
    for name in ("digits-gan", "digits-mlp-gan"):
        for n in (1, 64, 512):
            yield Case("gan", f"{name}-{n}", "plain module", partial(generation, name, n))


def generation(name: str, n: int) -> Work:
    """n images of a GAN or a VAE."""
    checkpoint = zoo.load(name)
    ours, theirs = partial(sampler_of(checkpoint).sample, n, seed=0), baselines.generate(checkpoint, n)

    def verify() -> float:
        return require(f"{name}-{n}", max_difference(ours(), theirs()), BOUND)

    return Work(ours, theirs, verify, items=n, unit="images")
