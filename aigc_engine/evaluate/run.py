"""`evaluate`: measures checkpoints with the bundled classifier and held-out data, row by row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from aigc_engine import zoo
from aigc_engine.evaluate import metrics
from aigc_engine.evaluate.held_out import halves, held_out_digits
from aigc_engine.evaluate.text import bits_per_character, held_out_text
from aigc_engine.load import sampler_of
from aigc_engine.zoo import Checkpoint

CLASSIFIER = "digits-classifier"
FRECHET_IMAGES = 500  # as many as a held-out half has: distances compare only at equal numbers


@dataclass(frozen=True)
class Row:
    """One measured number: `value` of `metric`, and what was promised of it.

    low and high are the bounds of a target, None where there is none; `percent` is how to print it.
    """

    model: str
    metric: str
    value: float
    percent: bool = False
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.low is None and self.high is None:
            return None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def shown(self) -> str:
        """The value as text."""
        return _shown(self.value, self.percent)

    @property
    def target(self) -> str:
        """The target as text, empty if there is none."""
        bounds = [(">=", self.low), ("<=", self.high)]
        return ", ".join(
            f"{sign} {_shown(bound, self.percent)}" for sign, bound in bounds if bound is not None
        )


def _shown(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.3f}"


@dataclass(frozen=True)
class Ruler:
    """What images are measured with: the classifier, and its features of the two held-out halves."""

    classifier: Any
    half_a: Tensor
    between_halves: float

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class probabilities of images."""
        return metrics.read(self.classifier, images)

    def frechet(self, name: str, features: Tensor) -> Row:
        """Distance of the first 500 samples to held-out half A, with that of half B beside it."""
        n = min(len(features), FRECHET_IMAGES)
        value = metrics.frechet_distance(features[:n], self.half_a[:n])
        note = f"half B of the real digits: {self.between_halves:.3f}" if n == FRECHET_IMAGES else f"n = {n}"
        return Row(name, f"Frechet distance to {n} held-out digits", value, note=note)


@lru_cache(maxsize=1)
def ruler() -> Ruler:
    """The bundled classifier with its readings of the held-out digits."""
    classifier: Any = zoo.load(CLASSIFIER).model
    half_a, half_b = (metrics.read(classifier, half)[0] for half in halves())
    return Ruler(classifier, half_a, metrics.frechet_distance(half_a, half_b))


def classifier_rows(checkpoint: Checkpoint, samples: int, seed: int) -> Iterator[Row]:
    """Accuracy on the held-out digits."""
    images, labels = held_out_digits()
    classifier: Any = checkpoint.model
    _, probabilities = metrics.read(classifier, images)
    value = metrics.accuracy(probabilities, labels)
    yield Row(checkpoint.name, f"accuracy on {len(labels)} held-out digits", value, True, low=0.98)


def diffusion_rows(checkpoint: Checkpoint, samples: int, seed: int) -> Iterator[Row]:
    """How many samples are taken for the class that they were made for, at many steps and at few."""
    n = max(10, samples // 4)
    labels = torch.arange(n) % 10
    for steps, low in ((50, 0.97), (10, 0.95)):
        images = _sampler(checkpoint).sample(n=n, seed=seed, steps=steps, label=labels.tolist())
        features, probabilities = ruler().read(images)
        metric = f"recognised as their class, {n} at {steps} steps"
        yield Row(checkpoint.name, metric, metrics.accuracy(probabilities, labels), True, low=low)
        frechet = ruler().frechet(checkpoint.name, features)
        yield Row(frechet.model, f"{frechet.metric}, {steps} steps", frechet.value, note=frechet.note)


def gan_rows(checkpoint: Checkpoint, samples: int, seed: int) -> Iterator[Row]:
    """How the samples are spread over the classes, and how sure the classifier is of them."""
    images = _sampler(checkpoint).sample(n=samples, seed=seed)
    features, probabilities = ruler().read(images)
    shares = metrics.class_shares(probabilities)
    name = checkpoint.name
    yield Row(name, f"rarest class of {samples}", shares.min().item(), True, low=0.04)
    yield Row(name, f"commonest class of {samples}", shares.max().item(), True, high=0.20)
    yield Row(name, "confidence over 0.9", metrics.confident(probabilities), True, low=0.85)
    yield ruler().frechet(name, features)


def vae_rows(checkpoint: Checkpoint, samples: int, seed: int) -> Iterator[Row]:
    """How sure the classifier is of samples, and whether reconstructions keep class and pixels."""
    sampler, name = _sampler(checkpoint), checkpoint.name
    features, probabilities = ruler().read(sampler.sample(n=samples, seed=seed))
    yield Row(name, f"confidence over 0.9, {samples} samples", metrics.confident(probabilities), True)
    yield ruler().frechet(name, features)
    images, labels = held_out_digits()
    again = sampler.reconstruct(images)
    _, probabilities = ruler().read(again)
    yield Row(name, "reconstructions that keep their class", metrics.accuracy(probabilities, labels), True)
    error = (again - images).square().mean().item()
    yield Row(name, "mean square error of reconstructions, in [-1, 1]", error)


def text_rows(checkpoint: Checkpoint, samples: int, seed: int) -> Iterator[Row]:
    """Bits per character of the held-out text."""
    text = held_out_text()
    value = bits_per_character(checkpoint.model, text)
    high = 2.0 if checkpoint.config["arch"] == "Transformer" else None
    yield Row(checkpoint.name, f"bits per character, {len(text):,} held-out characters", value, high=high)


ROWS: dict[str, Callable[[Checkpoint, int, int], Iterator[Row]]] = {
    "classifier": classifier_rows,
    "diffusion": diffusion_rows,
    "gan": gan_rows,
    "vae": vae_rows,
    "text": text_rows,
}


def evaluate(
    names: Sequence[str] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure checkpoints.

    Args:
        names: zoo names or checkpoint folders; None measures the whole zoo.
        samples: images from a GAN or VAE, >= 10; a quarter as many per step count of a diffusion model.
        seed: first seed of the samples.
        on_row: called with every row as soon as it is measured.

    Returns:
        The rows, in order.

    Raises:
        ValueError: unknown name or family, or too few samples.
    """
    if samples < 10:
        raise ValueError(f"evaluate: samples {samples}, expected at least 10; one per class is the least")
    rows = []
    for name in zoo.names() if names is None else names:
        for row in measure(zoo.load(name), samples=samples, seed=seed):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def measure(checkpoint: Checkpoint, *, samples: int = 2000, seed: int = 0) -> Iterator[Row]:
    """Rows of one loaded checkpoint, one after the other; see `evaluate`."""
    if checkpoint.family not in ROWS:
        raise ValueError(
            f"evaluate: family {checkpoint.family!r} of {checkpoint.name}, expected one of {sorted(ROWS)}; "
            "check config.json"
        )
    for row in ROWS[checkpoint.family](checkpoint, samples, seed):
        if not math.isfinite(row.value):
            raise RuntimeError(f"evaluate: {row.model}, {row.metric}, is {row.value}; the model is broken")
        yield row


def _sampler(checkpoint: Checkpoint) -> Any:
    return sampler_of(checkpoint)
