"""Adapter of the native attention kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, empty, empty_like
from aigc_engine.native.packing import PRODUCT_CODES
from aigc_engine.packed import product_of

MASK_BOOL, MASK_ADDED = 1, 2  # csrc/cpu/args.h: enum class MaskKind


def _rows(x: Tensor) -> Tensor:
    """x (B, N, T, D) with contiguous rows, copied only where strides leave no other way."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else contiguous(x)


def _mask_strides(mask: Tensor) -> tuple[int, int, int, int]:
    """Strides of a mask (four axes) that repeats along its axes of length 1."""
    b, n, t, s = (0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride(), strict=True))
    return b, n, t, s


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    return attend(product_of("attention", q, None), q, k, v, mask, causal, scale)


def attend(
    product: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Attention whose products are made as those of a `PackedWeight`."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    B, N, T, D = q.shape
    S = k.shape[2]
    out = empty_like(q)
    if not out.numel() or not S:
        return out.zero_()
    call = _native.Attention(
        batch=B,
        heads=N,
        kv_heads=k.shape[1],
        queries=T,
        keys=S,
        head_dim=D,
        scale=D**-0.5 if scale is None else scale,
        causal=causal,
        dtype=DTYPE_CODES[q.dtype],
        product=PRODUCT_CODES[product],
    )
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask
        if mask.shape[3] > 1 and mask.stride(3) != 1:
            mask = contiguous(mask)
        kind = MASK_BOOL if mask.dtype == torch.bool else MASK_ADDED
        call.set_mask(kind, mask.data_ptr(), _mask_strides(mask))
    workspace = empty((call.workspace(),), torch.uint8)
    call.run(
        q.data_ptr(),
        q.stride(),
        k.data_ptr(),
        k.stride(),
        v.data_ptr(),
        v.stride(),
        out.data_ptr(),
        out.stride(),
        workspace.data_ptr(),
        threads(),
    )
    return out
