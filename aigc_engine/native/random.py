"""Adapters of the native random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, empty


def philox_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    seeds = contiguous(seeds)
    out = empty((len(seeds), *shape), dtype)
    _native.philox_normal(
        seeds.data_ptr(), out.data_ptr(), len(seeds), math.prod(shape), stream, DTYPE_CODES[dtype], threads()
    )
    return out


def philox_uniform(seeds: Tensor, *, stream: int = 0) -> Tensor:
    seeds = contiguous(seeds)
    out = empty((len(seeds),), torch.float32)
    _native.philox_uniform(seeds.data_ptr(), out.data_ptr(), len(seeds), stream)
    return out
