"""Adapter of the native solver step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads


def linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    x = terms[0]
    rows, count = len(x), x.numel()
    if not count:
        return torch.empty_like(x) if out is None else out
    count //= rows
    terms = [term if term.is_contiguous() else _contiguous_rows(term) for term in terms]
    target = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    if out is not None and not out.is_contiguous() and not out[0].is_contiguous():
        target = torch.empty(x.shape, dtype=x.dtype)
    kept = [coefficients, noise_scale, seeds, streams]
    kept = [value if value is None or value.is_contiguous() else value.contiguous() for value in kept]
    _native.linear_update(
        [term.data_ptr() for term in terms],
        [term.stride(0) for term in terms],
        target.data_ptr(),
        target.stride(0),
        *[0 if value is None else value.data_ptr() for value in kept],
        rows,
        count,
        DTYPE_CODES[x.dtype],
        threads(),
    )
    return target if out is None or target is out else out.copy_(target)


def _contiguous_rows(term: Tensor) -> Tensor:
    return term if term[0].is_contiguous() else term.contiguous()
