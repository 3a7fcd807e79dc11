"""Adapters of the native kernels of autoregressive models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.ops.decode import BAD_LOGITS, BAD_PREVIOUS

# csrc/cpu/args.h: kBadLogits, kBadPrevious
FAULTS = {-1: f"logits row {{}} has {BAD_LOGITS}", -2: f"previous row {{}} has {BAD_PREVIOUS}"}


def sample_token(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    repetition_penalty: float | Tensor = 1.0,
    previous: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    scratch = torch.empty(rows, 2, vocabulary)
    uniform = uniform.contiguous()
    settings = [
        _setting(value, torch.float32) for value in (temperature, top_p, min_p, repetition_penalty)
    ] + [_setting(top_k, torch.int64)]
    if previous is not None:
        previous = previous.contiguous()
    if lengths is not None:
        lengths = lengths.contiguous()
    _native.sample_token(
        logits.data_ptr(),
        uniform.data_ptr(),
        tokens.data_ptr(),
        scratch.data_ptr(),
        rows,
        vocabulary,
        logits.stride(0),
        DTYPE_CODES[logits.dtype],
        *((0 if tensor is None else tensor.data_ptr(), value) for tensor, value in settings),
        0 if previous is None else previous.data_ptr(),
        0 if lengths is None else lengths.data_ptr(),
        0 if previous is None else previous.shape[1],
        threads(),
    )
    for row, token in enumerate(tokens.tolist()):
        if token < 0:
            raise ValueError(f"sample_token: {FAULTS[token].format(row)}")
    return tokens


def _setting(value: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """(one value per row, or None; the value for all rows)."""
    if isinstance(value, Tensor):
        return value.to(dtype).contiguous(), 0
    return None, value


def decoder_step(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    blocks: Sequence[Sequence[Tensor | None]],
    *,
    phases: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    layers, rows, heads, capacity, dim = keys.shape
    keys, values, lengths = keys.contiguous(), values.contiguous(), lengths.contiguous()
    phases = None if phases is None else phases.contiguous()
    weights = [None if t is None else t.contiguous() for block in blocks for t in block]
    up_width, down_width = (len(blocks[0][8]), blocks[0][10].shape[1]) if blocks else (0, 0)  # type: ignore
    out = x.clone(memory_format=torch.contiguous_format)
    new_keys, new_values = x.new_empty(2, layers, rows, heads, dim)
    scratch = torch.empty(rows * (5 * heads * dim + up_width + heads * (capacity + 1)))
    if rows:
        _native.decoder_step(
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            lengths.data_ptr(),
            0 if phases is None else phases.data_ptr(),
            [0 if t is None else t.data_ptr() for t in weights],
            new_keys.data_ptr(),
            new_values.data_ptr(),
            scratch.data_ptr(),
            rows,
            heads,
            dim,
            capacity,
            up_width,
            down_width,
            eps,
            threads(),
        )
    return out, new_keys, new_values
