"""Characters per second of the zoo's language models: with a cache and without it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from aigc_engine import zoo
from aigc_engine.autoregressive import TextSampler
from bench.case import Case, Mismatch, Work

LENGTH = 256
PROMPT = "In the beginning"


def cases() -> Iterator[Case]:
    for name in ("text-transformer", "text-lstm"):
        for n in (1, 8):
            against = "same model, prefix recomputed per character"
            target = 5.0 if name == "text-transformer" else None
            yield Case("text", f"{name}-{n}x{LENGTH}", against, partial(_work, name, n), target, seconds=10.0)


def _work(name: str, n: int) -> Work:
    sampler = TextSampler.from_checkpoint(zoo.load(name))
    ours = partial(sampler.sample, n, prompt=PROMPT, seed=0, length=LENGTH)
    theirs = partial(ours, use_cache=False)

    def verify() -> float:
        for row, (mine, other) in enumerate(zip(ours(), theirs(), strict=True)):
            if mine != other:
                raise Mismatch(f"{name}: text {row} differs with and without the cache; nothing was timed")
        return 0.0

    return Work(ours, theirs, verify, items=n * LENGTH, unit="characters")
