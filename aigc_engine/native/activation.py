"""Adapters of the native activation kernels."""

from __future__ import annotations

import math

from torch import Tensor

from aigc_engine import _native
from aigc_engine.native import DTYPE_CODES, threads
from aigc_engine.native.memory import contiguous, dense, empty, empty_like

# csrc/cpu/args.h: enum class Activation
ACTIVATION_CODES = {
    "none": 0,
    "relu": 1,
    "leaky_relu": 2,
    "silu": 3,
    "gelu": 4,
    "gelu_tanh": 5,
    "tanh": 6,
    "sigmoid": 7,
}


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    x, channels_last = dense(x)
    out = empty_like(x)
    channels = x.shape[1]
    inner = 1 if channels_last else math.prod(x.shape[2:])
    if bias is not None:
        bias = contiguous(bias)
    if x.numel():
        _native.bias_act(
            x.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            x.numel() // (channels * inner),
            channels,
            inner,
            DTYPE_CODES[x.dtype],
            ACTIVATION_CODES[act],
            slope,
            gain,
            -1.0 if clamp is None else clamp,
            threads(),
        )
    return out


def _glu(x: Tensor, act: str, gate_first: bool) -> Tensor:
    x = contiguous(x)
    width = x.shape[-1] // 2
    out = empty((*x.shape[:-1], width), x.dtype)
    _native.glu(
        x.data_ptr(),
        out.data_ptr(),
        x.numel() // (2 * width),
        width,
        DTYPE_CODES[x.dtype],
        ACTIVATION_CODES[act],
        gate_first,
        threads(),
    )
    return out


def geglu(x: Tensor) -> Tensor:
    return _glu(x, "gelu", gate_first=False)


def swiglu(x: Tensor) -> Tensor:
    return _glu(x, "silu", gate_first=True)
