"""Sampling from a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_engine import latents
from aigc_engine.gan.fold import fold
from aigc_engine.models.gan import DCGANGenerator, MLPGenerator
from aigc_engine.zoo import Checkpoint


class GanSampler:
    """Images G(z, label), z ~ truncation * N(0, I).

    A row is a function of its own seed, label and truncation: n samples with `seed=s` equal n single calls
    with seeds s, s + 1, ... bit for bit, in one batch. The sampler is immutable: threads may share it.

    References:
        Goodfellow et al., "Generative Adversarial Networks", 2014, https://arxiv.org/abs/1406.2661
        Karras, Laine, Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks", 2019,
        https://arxiv.org/abs/1812.04948 (truncation: less varied, cleaner samples)

    Args:
        generator: its weights are copied, batch norms folded.
        truncation: psi of `sample` where the call names none, finite and above 0.
    """

    def __init__(self, generator: DCGANGenerator | MLPGenerator, *, truncation: float = 1.0) -> None:
        self._generate = fold(generator)
        self.latent_dim = generator.latent_dim
        self.num_classes = generator.num_classes
        self.image_shape = generator.image_shape
        self.truncation = latents.checked_truncation("GanSampler", truncation)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> GanSampler:
        """The sampler of a checkpoint of family "gan", with the defaults of its config's "sampling"."""
        return cls(checkpoint.model, **checkpoint.config.get("sampling", {}))

    @torch.inference_mode()
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | Sequence[int] = 0,
        label: int | Sequence[int] | None = None,
        truncation: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Sample n images.

        Args:
            n: number of images, >= 1; None takes one for an int seed, one per seed for a sequence.
            seed: int in [-2^63, 2^63 - n], rows take seed, seed + 1, ...; or n seeds.
            label: class of all images, or n classes; None takes seed modulo num_classes in each row, so that
                consecutive seeds go through the classes.
            truncation: psi > 0, z = psi N(0, I); None takes the sampler's own.
            batch_size: images per pass, >= 1; None takes all in one. It changes no bit.
            progress: draw a progress bar on stderr.
        Returns:
            (n, C, H, W) float32 in [-1, 1].
        Raises:
            TypeError, ValueError: naming the argument.
        """
        seeds = latents.seed_rows("GanSampler.sample", n, seed)
        labels = self._labels("GanSampler.sample", seeds, label)
        psi = self.truncation if truncation is None else truncation
        z = latents.draw("GanSampler.sample", seeds, self.latent_dim, psi)
        return self._images("GanSampler.sample", z, labels, batch_size, progress)

    @torch.inference_mode()
    def interpolate(
        self,
        seed_a: int,
        seed_b: int,
        n: int = 8,
        *,
        label: int | None = None,
        truncation: float | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """n images on the great circle from the latent of seed_a (the first) to that of seed_b (the last).

        Args:
            seed_a, seed_b: ints in [-2^63, 2^63).
            n: number of images with both ends, >= 2.
            label: class of all images; None takes seed_a modulo num_classes.
            truncation, batch_size: as in `sample`.
        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        name = "GanSampler.interpolate"
        ends = [latents.integer(name, "seed_a", seed_a), latents.integer(name, "seed_b", seed_b)]
        n = latents.count(name, "n", n, low=2)
        seeds = latents.seed_rows(name, 2, ends)
        labels = self._labels(name, seeds[:1], label)
        psi = self.truncation if truncation is None else truncation
        z_a, z_b = latents.draw(name, seeds, self.latent_dim, psi)
        z = latents.slerp(z_a, z_b, torch.linspace(0.0, 1.0, n, dtype=torch.float64))
        return self._images(name, z, None if labels is None else labels.expand(n), batch_size, False)

    def _labels(self, name: str, seeds: Tensor, label: Any) -> Tensor | None:
        if self.num_classes is None:
            if label is not None:
                raise ValueError(f"{name}: label {label!r}, expected None (no classes); leave it out")
            return None
        return latents.label_rows(name, seeds, label, self.num_classes)

    def _images(
        self, name: str, z: Tensor, labels: Tensor | None, batch_size: int | None, progress: bool
    ) -> Tensor:
        parts = [
            self._generate(z[rows], None if labels is None else labels[rows])
            for rows in latents.batches(name, len(z), batch_size, progress)
        ]
        return torch.cat(parts)
