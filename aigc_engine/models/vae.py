"""A convolutional variational autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aigc_engine.models.layers import Conv2d, Linear, channels_last, group_norm_silu, native_rows


@dataclass(frozen=True)
class VAEConfig:
    """Sizes: `widths[i]` channels at 1 / 2^i of the image size; `latent` numbers describe an image.

    `num_classes` is the number of Gaussians that latents are drawn from.
    """

    channels: int = 1
    image_size: int = 28
    latent: int = 16
    widths: tuple[int, ...] = (16, 32, 64)
    groups: int = 2
    num_classes: int = 10


class VAE(nn.Module):
    """q(z | x) = N(mean(x), exp(logvar(x))) and a decoder of z to images.

    It is trained against z ~ N(0, I). Samples come from one Gaussian per class, fitted to the latents of the
    training images afterwards: few points of N(0, I) lie where the encoder puts any image.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2013, https://arxiv.org/abs/1312.6114
        Ghosh, Sajjadi, Vergari, Black, Schoelkopf, "From Variational to Deterministic Autoencoders", 2020
        (density estimation after training), https://arxiv.org/abs/1903.12436
    """

    class_mean: Tensor
    class_scale: Tensor

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = c = VAEConfig(**config)  # type: ignore[arg-type]
        self.latent = c.latent
        self.size = c.image_size // 2 ** (len(c.widths) - 1)
        flat = c.widths[-1] * self.size**2
        inputs = (c.channels, *c.widths[:-1])
        self.encoder = nn.ModuleList(
            Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(zip(inputs, c.widths, strict=True))
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(c.groups, width) for width in c.widths)
        self.posterior = Linear(flat, 2 * c.latent)
        self.prior = Linear(c.latent, flat)
        outputs = c.widths[::-1]
        self.decoder = nn.ModuleList(
            Conv2d(a, b, 3, padding=1) for a, b in zip((outputs[0], *outputs[:-1]), outputs, strict=True)
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(c.groups, width) for width in outputs)
        self.out = Conv2d(outputs[-1], c.channels, 3, padding=1)
        self.register_buffer("class_mean", torch.zeros(c.num_classes, c.latent))
        self.register_buffer("class_scale", torch.eye(c.latent).repeat(c.num_classes, 1, 1))
        self.to(memory_format=torch.channels_last)

    def fit_classes(self, mean: Tensor, label: Tensor) -> None:
        """Fit the Gaussian of each class to posterior means (n, latent) of images with labels (n,)."""
        ridge = 1e-6 * torch.eye(
            self.latent, dtype=torch.float64
        )  # a latent that encodes nothing has no spread
        for k in range(self.config.num_classes):
            rows = mean[label == k].double()
            self.class_mean[k] = rows.mean(0)
            self.class_scale[k] = torch.linalg.cholesky(torch.cov(rows.T) + ridge)

    def latents(self, noise: Tensor, label: Tensor) -> Tensor:
        """Latents mean_k + scale_k noise (B, latent), of classes k (B,) and noise ~ N(0, I) (B, latent)."""
        return self.class_mean[label] + torch.bmm(self.class_scale[label], noise[:, :, None])[:, :, 0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, both (B, latent), of images x (B, C, H, W) in [-1, 1]."""
        # A lone row would leave the convolutions that all other batches take.
        if not native_rows(x) and x.shape[0] == 1:
            mean, logvar = self.encode(x.expand(2, -1, -1, -1))
            return mean[:1], logvar[:1]
        h = channels_last(x)
        for conv, norm in zip(self.encoder, self.encoder_norms, strict=True):
            h = group_norm_silu(conv(h), norm)
        mean, logvar = self.posterior(h.contiguous().flatten(1)).chunk(2, dim=1)
        return mean, logvar

    def logits(self, z: Tensor) -> Tensor:
        """Logits (B, C, H, W) of the brightness of each pixel, for latents z (B, latent)."""
        if not native_rows(z) and z.shape[0] == 1:
            return self.logits(z.expand(2, -1))[:1]
        h = channels_last(self.prior(z).unflatten(1, (self.config.widths[-1], self.size, self.size)))
        for i, (conv, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            h = group_norm_silu(conv(h, upsample=1 if i == 0 else 2), norm)
        return self.out(h).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of latents z (B, latent): 2 sigmoid(logits) - 1."""
        return torch.tanh(0.5 * self.logits(z))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of x (B, C, H, W) in [-1, 1], through the mean of its posterior."""
        return self.decode(self.encode(x)[0])


class Decoder(nn.Module):
    """A VAE's way from latents (B, latent) to images (B, C, H, W), as a module of its own."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """`VAE.decode`."""
        return self.vae.decode(z)
