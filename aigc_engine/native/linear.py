"""Adapter of the native linear kernel."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.activation import ACTIVATION_CODES
from aigc_engine.native.memory import contiguous, empty, reshape
from aigc_engine.native.packing import PRODUCT_CODES
from aigc_engine.packed import PackedWeight

GATING_CODES = {"geglu": 1, "swiglu": 2}


def epilogue(out: Tensor, columns: int, bias: Tensor | None, act: str, slope: float = 0.0) -> Any:
    """What becomes of the sums: `out` holds rows of `columns`, `bias` is contiguous."""
    gating = GATING_CODES.get(act, 0)
    return _native.Epilogue(
        out=out.data_ptr(),
        columns=columns,
        out_stride=columns,
        dtype=DTYPE_CODES[out.dtype],
        bias=0 if bias is None else bias.data_ptr(),
        act=0 if gating else ACTIVATION_CODES[act],
        gating=gating,
        slope=slope,
    )


def scale(e: Any, weight: PackedWeight) -> None:
    """The sums of an int8 weight are scaled first."""
    if weight.scales is not None and weight.column_sums is not None:
        e.set_scales(weight.scales.data_ptr(), weight.column_sums.data_ptr())


def as_rows(x: Tensor) -> Tensor:
    """(..., K) as (M, K) whose rows are contiguous, copied only where strides leave no other way."""
    rows = reshape(x, (-1, x.shape[-1]))
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else contiguous(rows)


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.01,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    assert isinstance(weight, PackedWeight) and weight.data is not None
    columns = weight.shape[0] // (2 if act in GATING_CODES else 1)
    out = empty((*x.shape[:-1], columns), x.dtype)
    if not out.numel():
        return out
    rows = as_rows(x)
    bias = None if bias is None else contiguous(bias)
    e = epilogue(out, columns, bias, act, slope)
    scale(e, weight)
    if gate is not None:
        per_sample = gate.shape != out.shape
        gate = as_rows(gate)
        if per_sample:
            e.set_samples(math.prod(x.shape[1:-1]))
        e.set_gate(gate.data_ptr(), gate.stride(0), per_sample)
    if residual is not None:
        residual = as_rows(residual)
        e.set_residual(residual.data_ptr(), residual.stride(0))
    _native.linear(
        rows.data_ptr(),
        rows.stride(0),
        weight.data.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        PRODUCT_CODES[weight.product],
        e,
        threads(),
    )
    return out
