"""What samplers of latent vectors share: seeds to rows of z, and the way between two latents."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from aigc_engine.ops import philox_normal


def integer(name: str, argument: str, value: Any) -> int:
    """The value as an int; TypeError for anything that isn't a whole number (True and 1.0 are none)."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: {argument} {value!r}, expected an int; pass a whole number")


def count(name: str, argument: str, value: Any, low: int = 1) -> int:
    """The value as an int >= low."""
    number = integer(name, argument, value)
    if number < low:
        raise ValueError(f"{name}: {argument} {number}, expected at least {low}; raise it")
    return number


def seed_rows(name: str, n: int | None, seed: Any) -> Tensor:
    """Seeds (n,) int64 of n samples: seed, seed + 1, ... of an int, or the n seeds of a sequence.

    Args:
        name: who asks, for the messages.
        n: number of samples; None means one for an int seed, all for a sequence.
        seed: int, or sequence (or 1-D integer tensor) of ints, each in [-2^63, 2^63).
    """
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        rows = [integer(name, f"seed[{i}]", value) for i, value in enumerate(seed)]
        if not rows:
            raise ValueError(f"{name}: seed is empty, expected at least one; pass an int or a list of ints")
        if n is not None and count(name, "n", n) != len(rows):
            raise ValueError(f"{name}: seed has {len(rows)} entries, expected n = {n}; leave n out")
    else:
        first = integer(name, "seed", seed)
        rows = list(range(first, first + count(name, "n", 1 if n is None else n)))
    if min(rows) < -(2**63) or max(rows) >= 2**63:
        raise ValueError(
            f"{name}: seed {min(rows)} to {max(rows)}, expected [-2^63, 2^63); choose a smaller one"
        )
    return torch.tensor(rows, dtype=torch.int64)


def label_rows(name: str, seeds: Tensor, label: Any, num_classes: int) -> Tensor:
    """Classes (n,) int64 of n samples: one for all, one each, or for None seed modulo num_classes."""
    if label is None:
        return seeds.remainder(num_classes)
    if isinstance(label, Tensor):
        label = label.tolist()
    if not isinstance(label, Sequence) or isinstance(label, str):
        label = [label] * len(seeds)
    labels = [integer(name, "label", value) for value in label]
    if len(labels) != len(seeds):
        raise ValueError(
            f"{name}: label has {len(labels)} entries, expected {len(seeds)}; give one per image"
        )
    for value in labels:
        if not 0 <= value < num_classes:
            raise ValueError(
                f"{name}: label {value}, expected 0 to {num_classes - 1}; choose a class of the model"
            )
    return torch.tensor(labels, dtype=torch.int64)


def checked_truncation(name: str, truncation: Any) -> float:
    """The truncation psi as a float, finite and above 0."""
    if isinstance(truncation, bool) or not isinstance(truncation, (int, float)):
        raise TypeError(f"{name}: truncation {truncation!r}, expected a float; pass a number")
    if not (math.isfinite(truncation) and truncation > 0):
        raise ValueError(
            f"{name}: truncation {truncation}, expected finite and above 0; 1.0 leaves z as it is"
        )
    return float(truncation)


def draw(name: str, seeds: Tensor, dim: int, truncation: float = 1.0) -> Tensor:
    """Latents z = truncation * N(0, I), (n, dim) float32: row i is a function of seeds[i] alone."""
    return philox_normal(seeds, (dim,)) * checked_truncation(name, truncation)


def batches(name: str, rows: int, batch_size: int | None, progress: bool) -> Iterator[slice]:
    """Slices of at most `batch_size` rows (None: all at once), with a progress bar on stderr if asked for."""
    size = rows if batch_size is None else count(name, "batch_size", batch_size)
    with tqdm(total=rows, desc=name, disable=not progress) as bar:
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))
            bar.update(min(size, rows - start))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    r"""Spherical interpolation: the direction turns at constant speed, the length changes linearly.

    .. math:: x(t) = ((1 - t) |a| + t |b|) (\cos(t\Omega)\, u + \sin(t\Omega)\, v), \quad
        u = a / |a|, \quad v \perp u \text{ towards } b

    Gaussian latents lie near a sphere; a straight line between them would pass through lengths that a
    generator has never seen. Omega = 2 atan2(|u - w|, |u + w|), w = b / |b|, keeps all its digits for nearly
    parallel and nearly opposite vectors; where b gives v no direction, v is the axis farthest from u, made
    orthogonal.

    References:
        K. Shoemake, "Animating Rotation with Quaternion Curves", 1985, https://doi.org/10.1145/325334.325242
        T. White, "Sampling Generative Networks", 2016, https://arxiv.org/abs/1609.04468

    Args:
        a, b: (D,) floating, D >= 2; a zero vector has no direction and takes the other's.
        t: (n,), 0 gives a and 1 gives b.
    Returns:
        (n, D) in a's dtype, computed in float64.
    """
    start, end, at = a.double(), b.double(), t.double()[:, None]
    lengths = start.norm(), end.norm()
    if lengths[0] == 0 or lengths[1] == 0:
        return torch.lerp(start, end, at).to(a.dtype)
    u, w = start / lengths[0], end / lengths[1]
    omega = 2.0 * torch.atan2((u - w).norm(), (u + w).norm())
    v = _orthogonal(w, u)
    if v is None:
        axis = torch.zeros_like(u)
        axis[u.abs().argmin()] = 1.0
        v = _orthogonal(axis, u)
        assert v is not None, "the axis farthest from u is never parallel to it"
    x = torch.lerp(lengths[0], lengths[1], at) * (torch.cos(at * omega) * u + torch.sin(at * omega) * v)
    x = torch.where(at == 0, start, torch.where(at == 1, end, x))
    return x.to(a.dtype)


def _orthogonal(w: Tensor, u: Tensor) -> Tensor | None:
    """Unit vector along w's part orthogonal to the unit vector u; None where rounding is all that is left."""
    v = w - (w @ u) * u
    if v.norm() < 1e-12:
        return None
    v = v / v.norm()
    v = v - (v @ u) * u  # once more: the first difference cancels when w is nearly parallel to u
    return v / v.norm()
