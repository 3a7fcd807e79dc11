"""How good are samples: classes, confidence, and the Frechet distance in the features of a classifier."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

BATCH = 250


class FeatureClassifier(Protocol):
    """A classifier whose logits are `head(features(x))` in eval mode."""

    def features(self, x: Tensor) -> Tensor: ...
    def head(self, h: Tensor) -> Tensor: ...


@torch.no_grad()
def read(classifier: FeatureClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier makes of images.

    Args:
        classifier: in eval mode.
        images: (n, C, H, W) float32 in [-1, 1].

    Returns:
        features (n, K) and class probabilities (n, classes).
    """
    features = torch.cat([classifier.features(part) for part in images.split(BATCH)])
    return features, torch.softmax(classifier.head(features), dim=1)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of rows of probabilities (n, classes) whose largest entry is at labels (n,)."""
    return (probabilities.argmax(1) == labels).double().mean().item()


def confident(probabilities: Tensor, threshold: float = 0.9) -> float:
    """Share of rows of probabilities (n, classes) whose largest entry is over the threshold."""
    return (probabilities.amax(1) > threshold).double().mean().item()


def class_shares(probabilities: Tensor) -> Tensor:
    """Share of rows of probabilities (n, classes) that fall to each class: (classes,) float64, sum 1."""
    classes = probabilities.shape[1]
    return probabilities.argmax(1).bincount(minlength=classes).double() / len(probabilities)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features.

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2))``, in float64.

    References:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two Time-Scale Update Rule
        Converge to a Local Nash Equilibrium", 2017, https://arxiv.org/abs/1706.08500

    Args:
        a: features (n, K), n >= 2.
        b: features (m, K), m >= 2. Distances compare only at equal n and m: small sets read high.

    Returns:
        The distance (squared units of the features), >= 0.

    Raises:
        ValueError: not two matrices of the same width and at least two rows, or NaN or Inf.
    """
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] != a.shape[-1]:
            raise ValueError(
                f"frechet_distance: {name} {tuple(x.shape)}, expected (n >= 2, {a.shape[-1]}); "
                "pass features of the same classifier"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                f"frechet_distance: {name} has NaN or Inf, expected finite features; look at the images"
            )
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross
    return max(0.0, distance.item())
