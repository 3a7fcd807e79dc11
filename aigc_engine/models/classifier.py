"""A small convolutional classifier: the ruler that the other models are measured with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.models.layers import Linear, channels_last


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes: `widths[i]` channels at 1 / 2^i of the image size, `features` in the last hidden layer."""

    channels: int = 1
    image_size: int = 28
    widths: tuple[int, ...] = (32, 64, 96)
    features: int = 64
    num_classes: int = 10
    dropout: float = 0.3


class Classifier(nn.Module):
    """Class logits of images; `features` are the activations that the Frechet distance is computed on."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = c = ClassifierConfig(**config)  # type: ignore[arg-type]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        width = c.channels
        for out in c.widths:
            self.convs.append(nn.Conv2d(width, out, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(out))
            width = out
        size = c.image_size // 2 ** len(c.widths)
        self.hidden = Linear(width * size * size, c.features)
        self.head = Linear(c.features, c.num_classes)
        self.dropout = nn.Dropout(c.dropout)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """Hidden activations (B, features) of images x (B, C, H, W) in [-1, 1]."""
        if x.shape[0] == 1:  # a lone row would leave the convolutions that all other batches take
            return self.features(x.expand(2, -1, -1, -1))[:1]
        h = channels_last(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.max_pool2d(F.relu(norm(conv(h))), 2)
        return F.relu(self.hidden(self.dropout(h.contiguous().flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images x (B, C, H, W) in [-1, 1]."""
        return self.head(self.dropout(self.features(x)))
