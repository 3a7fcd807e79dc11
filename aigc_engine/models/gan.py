"""Generators and discriminators for 28x28 images: class-conditional DCGAN and the plain MLP GAN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DCGANGenerator(nn.Module):
    """(z, label) -> image: project to 7x7, then two stride-2 transposed convolutions to 28x28."""

    def __init__(
        self,
        latent_dim: int = 64,
        num_classes: int | None = 10,
        embedding_dim: int = 16,
        channels: Sequence[int] = (96, 48),
        image_channels: int = 1,
        base_size: int = 7,
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_classes, self.base_size = latent_dim, num_classes, base_size
        self.image_shape = (image_channels, base_size * 4, base_size * 4)
        c0, c1 = channels
        self.embed = nn.Embedding(num_classes, embedding_dim) if num_classes is not None else None
        width = latent_dim + (embedding_dim if num_classes is not None else 0)
        self.project = nn.Linear(width, c0 * base_size * base_size, bias=False)
        self.norm0 = nn.BatchNorm2d(c0)
        self.up1 = nn.ConvTranspose2d(c0, c1, 4, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c1)
        self.up2 = nn.ConvTranspose2d(c1, image_channels, 4, 2, 1)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(label)], dim=1)
        h = self.project(z).unflatten(1, (-1, self.base_size, self.base_size))
        h = F.relu(self.norm0(h))
        h = F.relu(self.norm1(self.up1(h)))
        return torch.tanh(self.up2(h))


class MLPGenerator(nn.Module):
    def __init__(
        self,
        latent_dim: int = 64,
        hidden: Sequence[int] = (256, 512, 512),
        image_shape: Sequence[int] = (1, 28, 28),
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_classes, self.slope = latent_dim, None, slope
        self.image_shape = tuple(image_shape)
        c, h, w = self.image_shape
        widths = [latent_dim, *hidden, c * h * w]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        h = z
        for layer in self.layers[:-1]:
            h = F.leaky_relu(layer(h), self.slope)
        return torch.tanh(self.layers[-1](h)).unflatten(1, self.image_shape)


class Discriminator(nn.Module):
    def __init__(self, num_classes=None, channels=(32, 64), features=192, image_channels=1, base_size=7, slope=0.2):
        super().__init__()
        c0, c1 = channels
        self.slope = slope
        self.down1 = nn.Conv2d(image_channels, c0, 4, 2, 1)
        self.down2 = nn.Conv2d(c0, c1, 4, 2, 1)
        self.features = nn.Linear(c1 * base_size**2 + 1, features)
        self.score = nn.Linear(features, 1)
        self.embed = nn.Embedding(num_classes, features) if num_classes is not None else None

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = F.leaky_relu(self.down1(x), self.slope)
        h = F.leaky_relu(self.down2(h), self.slope).flatten(1)
        h = torch.cat([h, minibatch_stddev(h)], dim=1)
        h = F.leaky_relu(self.features(h), self.slope)
        logit = self.score(h).squeeze(1)
        if self.embed is not None:
            logit = logit + (self.embed(label) * h).sum(1) / h.shape[1] ** 0.5
        return logit


def minibatch_stddev(h: Tensor, group: int = 4) -> Tensor:
    g = h.unflatten(0, (-1, group))
    d = g - g.mean(1, keepdim=True)
    d = (d.square().mean(1) + 1e-8).sqrt().mean(1)
    return d.repeat_interleave(group)[:, None]
