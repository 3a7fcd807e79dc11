"""Training data: digits from an npz file, and an order of visit that depends on (seed, step) only."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT_PER_CLASS = 100
HELD_OUT_SEED = 2026


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 28, 28) float32 in [-1, 1] and labels (n,) int64 in [0, 10)."""

    images: Tensor
    labels: Tensor


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 (n, 28, 28) to float32 (n, 1, 28, 28) in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0)[:, None]


def load_digits(path: str | Path) -> tuple[Digits, Digits]:
    """Read an npz file with `images` uint8 (n, 28, 28) and `labels` (n,), and split it.

    The held-out part has 100 digits of each class, chosen by a fixed seed: it never depends on the seed of a
    training run, so no recipe ever trains on the digits that another one is measured on.

    Returns:
        (training digits, held-out digits).
    Raises:
        ValueError: not a readable npz file, or arrays of other shapes, types or values.
    """
    images, labels = _read_npz(Path(path))
    held = np.zeros(len(labels), dtype=bool)
    order = np.random.Generator(np.random.PCG64(HELD_OUT_SEED)).permutation(len(labels))
    for digit in range(10):
        of_class = order[labels[order] == digit]
        if len(of_class) <= HELD_OUT_PER_CLASS:
            raise ValueError(
                f"train: data {str(path)!r} has {len(of_class)} digits of class {digit}, "
                f"expected more than {HELD_OUT_PER_CLASS}; use the whole file"
            )
        held[of_class[:HELD_OUT_PER_CLASS]] = True
    targets = torch.from_numpy(labels.astype(np.int64))
    kept, out = torch.from_numpy(~held), torch.from_numpy(held)
    pictures = to_images(images)
    return Digits(pictures[kept], targets[kept]), Digits(pictures[out], targets[out])


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError:
        raise ValueError(
            f"train: data {str(path)!r} does not exist, expected an npz file of digits; give its path"
        ) from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"train: data {str(path)!r} is not readable ({error}), expected an npz file with arrays "
            "'images' and 'labels'; copy or download it again"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"train: data images {images.dtype} {images.shape}, expected uint8 (n, 28, 28); convert the file"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"train: data labels {labels.dtype} {labels.shape}, expected integers {images.shape[:1]}; "
            "give one label per image"
        )
    if labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
        raise ValueError("train: data labels outside 0 to 9, expected digits; correct the file")
    return images, labels


def batch_indices(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Indices (batch,) of the examples of step `step`: a permutation for every `count // batch` steps."""
    if not 0 < batch <= count:
        raise ValueError(f"batch_indices: batch {batch}, expected 1 to {count}; lower the batch")
    per_epoch = count // batch
    epoch, position = divmod(step, per_epoch)
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(count)[position * batch : (position + 1) * batch]
    return torch.from_numpy(order)
