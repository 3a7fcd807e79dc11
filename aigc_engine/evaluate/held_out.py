"""The digits that no recipe trains on, bundled so that the zoo can be measured anywhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aigc_engine import zoo

SIDE = 28


@lru_cache(maxsize=1)
def held_out_digits() -> tuple[Tensor, Tensor]:
    """The 1,000 held-out digits of `train.data.load_digits`; row d of the picture has those of class d.

    Returns:
        images (1000, 1, 28, 28) float32 in [-1, 1] and labels (1000,) int64; the classes take turns,
        so that any two runs of whole tens have the same classes.
    """
    with Image.open(Path(zoo.__file__).parent / "held_out" / "digits.png") as picture:
        pixels = torch.from_numpy(np.array(picture))
    classes, count = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    images = pixels.view(classes, SIDE, count, SIDE).permute(2, 0, 1, 3).reshape(-1, 1, SIDE, SIDE)
    return images.float() / 127.5 - 1.0, torch.arange(classes).repeat(count)


def halves() -> tuple[Tensor, Tensor]:
    """The held-out images in two halves of 500, each with 50 of every class."""
    images, _ = held_out_digits()
    return images[: len(images) // 2], images[len(images) // 2 :]
