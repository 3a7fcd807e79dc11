"""Generators and discriminators: class-conditional DCGAN and the plain MLP GAN, for small square images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.models.layers import Linear, channels_last


@dataclass(frozen=True)
class DCGANConfig:
    """Sizes: `widths` channels at base_size and twice it; images are (channels, 4 base_size, 4 base_size)."""

    latent_dim: int = 64
    num_classes: int | None = 10
    embedding: int = 16
    widths: Sequence[int] = (64, 32)
    channels: int = 1
    base_size: int = 7


@dataclass(frozen=True)
class MLPConfig:
    """Sizes: `widths` of the hidden layers, `image_shape` (C, H, W), `slope` of the leaky ReLU.

    `components`: how many of the latents choose a component of the mixture (see `choose`); 0 for none.
    """

    latent_dim: int = 64
    components: int = 0
    widths: Sequence[int] = (256, 512, 512)
    image_shape: Sequence[int] = (1, 28, 28)
    slope: float = 0.2


class DCGANGenerator(nn.Module):
    """Image G(z, label): a linear layer, then two transposed 4x4 convolutions of stride 2.

    Batch norm and ReLU follow every layer but the last, which ends in tanh. The class enters as an embedding
    beside z.

    References:
        Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks", 2016, https://arxiv.org/abs/1511.06434
        Mirza, Osindero, "Conditional Generative Adversarial Nets", 2014, https://arxiv.org/abs/1411.1784

    Args:
        z: (B, latent_dim) float32, standard normal.
        label: (B,) int64 in [0, num_classes), or None for a model without classes.
    Returns:
        (B, channels, 4 base_size, 4 base_size) in [-1, 1].
    """

    def __init__(
        self,
        latent_dim: int = 64,
        num_classes: int | None = 10,
        embedding: int = 16,
        widths: Sequence[int] = (64, 32),
        channels: int = 1,
        base_size: int = 7,
    ) -> None:
        super().__init__()
        self.config = DCGANConfig(latent_dim, num_classes, embedding, tuple(widths), channels, base_size)
        c0, c1 = widths
        self.embed = nn.Embedding(num_classes, embedding) if num_classes else None
        width = latent_dim + (embedding if num_classes else 0)
        self.project = Linear(width, c0 * base_size**2, bias=False)
        self.norm0 = nn.BatchNorm2d(c0)
        self.up1 = nn.ConvTranspose2d(c0, c1, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c1)
        self.up2 = nn.ConvTranspose2d(c1, channels, 4, stride=2, padding=1)

    @property
    def latent_dim(self) -> int:
        """Length of z."""
        return self.config.latent_dim

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without classes."""
        return self.config.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        size = 4 * self.config.base_size
        return self.config.channels, size, size

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed(label)], dim=1)
        size = self.config.base_size
        h = channels_last(self.project(z).unflatten(1, (-1, size, size)))
        h = F.relu(self.norm0(h))
        h = F.relu(self.norm1(self.up1(h)))
        return torch.tanh(self.up2(h))


def choose(z: Tensor, components: int) -> Tensor:
    """Component of each row of z ~ N(0, I): the largest of its first coordinates, uniform by symmetry."""
    return z[:, :components].argmax(1)


class MLPGenerator(nn.Module):
    """Image G(z): linear layers with leaky ReLU, tanh at the end.

    With `components` = k > 0 the first k coordinates of z enter as the one-hot of the largest of them: z is
    then a mixture of k equally likely Gaussians, and images of two components needn't be joined by blends.

    References:
        Goodfellow et al., "Generative Adversarial Networks", 2014, https://arxiv.org/abs/1406.2661

    Args:
        z: (B, latent_dim) float32, standard normal.
        label: None; the model has no classes.
    Returns:
        (B, *image_shape) in [-1, 1].
    """

    num_classes: int | None = None

    def __init__(
        self,
        latent_dim: int = 64,
        components: int = 0,
        widths: Sequence[int] = (256, 512, 512),
        image_shape: Sequence[int] = (1, 28, 28),
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.config = MLPConfig(latent_dim, components, tuple(widths), tuple(image_shape), slope)
        sizes = [latent_dim, *widths, math.prod(image_shape)]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers[:-1]:
            nn.init.kaiming_normal_(layer.weight, a=slope)
            nn.init.zeros_(layer.bias)

    @property
    def latent_dim(self) -> int:
        """Length of z."""
        return self.config.latent_dim

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        channels, height, width = self.config.image_shape
        return channels, height, width

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        k = self.config.components
        if k:
            z = torch.cat([F.one_hot(choose(z, k), k).to(z.dtype), z[:, k:]], dim=1)
        *hidden, last = self.layers
        for layer in hidden:
            z = F.leaky_relu(layer(z), self.config.slope)
        return torch.tanh(last(z)).unflatten(1, self.image_shape)


def minibatch_stddev(h: Tensor, group: int = 4) -> Tensor:
    """Mean over features of the standard deviation within groups of `group` rows: (B, F) -> (B, 1).

    It shows a discriminator how varied its batch is; `B` is a multiple of `group`.

    References:
        Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 2018,
        https://arxiv.org/abs/1710.10196
    """
    rows = h.float().unflatten(0, (-1, group))
    deviation = rows - rows.mean(1, keepdim=True)
    # 1e-8 keeps the gradient of the root finite where a feature is zero in the whole group.
    spread = (deviation.square().mean(1) + 1e-8).sqrt().mean(1)
    return spread.repeat_interleave(group)[:, None].to(h.dtype)


class Discriminator(nn.Module):
    """Score D(x, label), higher for images that look real; the class enters as a projection.

    D = w . f(x) + e[label] . f(x) / sqrt(F), with f two convolutions 4x4 (stride 2), the spread of the
    minibatch and a linear layer to F features, each with leaky ReLU.

    References:
        Miyato, Koyama, "cGANs with Projection Discriminator", 2018, https://arxiv.org/abs/1802.05637

    Args:
        x: (B, channels, 4 base_size, 4 base_size), B a multiple of 4.
        label: (B,) int64 in [0, num_classes), or None for a model without classes.
    Returns:
        (B,) scores.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        widths: Sequence[int] = (32, 64),
        features: int = 192,
        channels: int = 1,
        base_size: int = 7,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        c0, c1 = widths
        self.slope = slope
        self.down1 = nn.Conv2d(channels, c0, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(c0, c1, 4, stride=2, padding=1)
        self.features = nn.Linear(c1 * base_size**2 + 1, features)
        self.score = nn.Linear(features, 1)
        self.embed = nn.Embedding(num_classes, features) if num_classes else None

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = F.leaky_relu(self.down1(channels_last(x)), self.slope)
        h = F.leaky_relu(self.down2(h), self.slope).flatten(1)
        h = F.leaky_relu(self.features(torch.cat([h, minibatch_stddev(h)], dim=1)), self.slope)
        score = self.score(h).squeeze(1)
        if self.embed is not None:
            score = score + (self.embed(label) * h).sum(1) / h.shape[1] ** 0.5
        return score
