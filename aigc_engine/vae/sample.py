"""Sampling from a variational autoencoder, and the way through its latent space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import latents
from aigc_engine.models.vae import VAE, Decoder
from aigc_engine.planned import Planned, planned
from aigc_engine.zoo import Checkpoint


class VaeSampler:
    """Images decode(z), z ~ N(mean_label, truncation^2 cov_label); reconstructions decode(mean of q(z | x)).

    A row is a function of its own seed or image: n samples with `seed=s` equal n single calls with seeds
    s, s + 1, ... bit for bit, in one batch. The sampler keeps no state: threads may share it.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, https://arxiv.org/abs/1312.6114

    Args:
        model: put into eval mode; its weights are shared, not copied.
        truncation: scale of the noise where the call names none, finite and above 0.
    """

    def __init__(self, model: VAE, *, truncation: float = 1.0) -> None:
        if not isinstance(model, VAE):
            raise TypeError(
                f"VaeSampler: model {type(model).__name__}, expected a VAE; load one from the zoo"
            )
        self.model = model.eval()
        self._decoder = Planned(Decoder(model).eval())
        self.latent_dim = model.config.latent
        self.num_classes = model.config.num_classes
        self.image_shape = (model.config.channels, model.config.image_size, model.config.image_size)
        self.truncation = latents.checked_truncation("VaeSampler", truncation)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> VaeSampler:
        """The sampler of a checkpoint of family "vae", with the defaults of its config's "sampling"."""
        sampler = cls(checkpoint.model, **checkpoint.config.get("sampling", {}))
        sampler._decoder = planned(checkpoint)
        return sampler

    def explain(self) -> str:
        """How latents are decoded: as which plan, or why op by op."""
        return self._decoder.explain()

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
            truncation: scale psi > 0 of the noise around the mean of its class; None takes the sampler's own.
            batch_size: images per pass, >= 1; None takes all in one. It changes no bit.
            progress: draw a progress bar on stderr.
        Returns:
            (n, C, H, W) float32 in [-1, 1].
        Raises:
            TypeError, ValueError: naming the argument.
        """
        name = "VaeSampler.sample"
        psi = self.truncation if truncation is None else truncation
        z = self._latents(name, latents.seed_rows(name, n, seed), label, psi)
        return self._decode(name, z, batch_size, progress)

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, *, batch_size: int | None = None, progress: bool = False) -> Tensor:
        """Decode the posterior mean of each image.

        Args:
            images: (B, C, H, W) floating in [-1, 1], B >= 1.
            batch_size, progress: as in `sample`.
        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        name = "VaeSampler.reconstruct"
        return self._decode(name, self._encode(name, "images", images, batch_size), batch_size, progress)

    @torch.inference_mode()
    def interpolate(
        self, a: Tensor | int, b: Tensor | int, n: int = 8, *, batch_size: int | None = None
    ) -> Tensor:
        """n images on the great circle from the latent of `a` (first image) to that of `b` (last image).

        Args:
            a, b: each an image (C, H, W) in [-1, 1], whose latent is its posterior mean, or a seed.
            n: number of images with both ends, >= 2.
            batch_size: as in `sample`.
        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        name = "VaeSampler.interpolate"
        n = latents.count(name, "n", n, low=2)
        ends = [self._end(name, "a", a), self._end(name, "b", b)]
        z = latents.slerp(ends[0], ends[1], torch.linspace(0.0, 1.0, n, dtype=torch.float64))
        return self._decode(name, z, batch_size, False)

    def _end(self, name: str, argument: str, end: Tensor | int) -> Tensor:
        if isinstance(end, Tensor) and end.is_floating_point():
            if end.ndim != 3:
                raise ValueError(
                    f"{name}: {argument} {tuple(end.shape)}, expected {self.image_shape}; index the batch"
                )
            return self._encode(name, argument, end[None], None)[0]
        seeds = latents.seed_rows(name, 1, latents.integer(name, argument, end))
        return self._latents(name, seeds, None, self.truncation)[0]

    def _latents(self, name: str, seeds: Tensor, label: object, psi: float) -> Tensor:
        labels = latents.label_rows(name, seeds, label, self.num_classes)
        return self.model.latents(latents.draw(name, seeds, self.latent_dim, psi), labels)

    def _encode(self, name: str, argument: str, images: Tensor, batch_size: int | None) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"{name}: {argument} {kind}, expected a floating tensor in [-1, 1]; bytes / 127.5 - 1 is one"
            )
        if images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(
                f"{name}: {argument} {tuple(images.shape)}, expected (B >= 1, {str(self.image_shape)[1:]}; "
                "resize or add the missing axes"
            )
        low, high = images.aminmax()
        if not (low >= -1 and high <= 1):  # false for NaN too
            raise ValueError(
                f"{name}: {argument} from {low.item():.4g} to {high.item():.4g}, expected [-1, 1]; "
                "scale or clamp the images"
            )
        x = images.float()
        parts = [self.model.encode(x[rows])[0] for rows in latents.batches(name, len(x), batch_size, False)]
        return torch.cat(parts)

    def _decode(self, name: str, z: Tensor, batch_size: int | None, progress: bool) -> Tensor:
        decode, _ = self._decoder.chosen()
        return torch.cat([decode(z[rows]) for rows in latents.batches(name, len(z), batch_size, progress)])
