"""Who serves which op: one line per (op, backend), in priority order; the reference is implicitly last.

Capability is data: devices, dtypes of the leading tensor, and limits on facts that the op reports about its
arguments. A line may stand above another only if a committed record in `bench/results` shows it faster there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

FLOAT32 = frozenset({torch.float32})
FLOATS = frozenset({torch.float32, torch.bfloat16})
GPU_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
PACKED = frozenset({"packed"})
INT64 = frozenset({torch.int64})
INDICES = frozenset({torch.int64, torch.int32})
NORM_RESULTS = frozenset({"as x", "bfloat16"})


@dataclass(frozen=True)
class Range:
    """Closed interval of allowed values."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Line:
    """One backend of one op: where it is (`module:function`) and what it can serve.

    A shortcut (also `module:function`) is asked before anything else. It serves plain calls whole, checks
    included, and returns NotImplemented for all others, which then go the long way.
    """

    op: str
    backend: str
    impl: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    limits: Mapping[str, Range | frozenset] = field(default_factory=dict)
    shortcut: str = ""


def _native(
    op: str,
    module: str,
    dtypes: frozenset[torch.dtype] = FLOATS,
    *,
    shortcut: str = "",
    **limits: Range | frozenset,
) -> Line:
    impl = f"aigc_engine.native.{module}:{op}"
    return Line(op, "native", impl, frozenset({"cpu"}), dtypes, limits, shortcut)


def _triton(op: str, dtypes: frozenset[torch.dtype] = GPU_FLOATS, **limits: Range | frozenset) -> Line:
    return Line(op, "triton", f"aigc_engine.kernels.{op}:{op}", frozenset({"cuda"}), dtypes, limits)


def _cuda(op: str, dtypes: frozenset[torch.dtype] = FLOATS, **limits: Range | frozenset) -> Line:
    return Line(op, "cuda", f"aigc_engine.native.cuda:{op}", frozenset({"cuda"}), dtypes, limits)


LINES: tuple[Line, ...] = (
    _native("attention", "attention"),
    _triton(
        "attention",
        D=Range(16, 128),
        mask=frozenset({"none", "key_padding"}),
        heads_per_key=Range(1, 1),
    ),
    _native("bias_act", "activation"),
    _triton("bias_act"),
    _native("conv1d", "conv", weight=PACKED),
    # PyTorch's own depthwise kernel is as fast with less than 7 x 7 taps or at a stride, and faster in
    # bfloat16, until something follows.
    _native(
        "conv2d",
        "conv",
        weight=PACKED,
        depthwise=frozenset({"no", "fused", "bare float32"}),
    ),
    _native("conv3d", "conv3d", weight=PACKED),
    _native("conv_transpose1d", "conv", weight=PACKED),
    _native("conv_transpose2d", "conv", weight=PACKED),
    _native("decoder_step", "decode", FLOAT32),
    # Alone as fast as PyTorch's, less what a call costs: it's here so that plans run it, and check indices.
    _native("embedding", "embedding", INDICES),
    _native("geglu", "activation"),
    _native("group_norm", "norm", result=NORM_RESULTS),
    _native("group_norm_silu", "norm", result=NORM_RESULTS),
    _triton("group_norm_silu"),
    _native("layer_norm", "norm", result=NORM_RESULTS),
    _native("linear", "linear", weight=PACKED, gated_tail=Range(0, 0)),
    _native("linear_update", "diffusion", shortcut="aigc_engine._native:linear_update_direct"),
    _triton("linear_update", FLOATS),
    _cuda("linear_update"),
    _native("philox_normal", "random", INT64, device=frozenset({"cpu"})),
    _native("philox_uniform", "random", INT64),
    _native(
        "pointwise",
        "pointwise",
        shortcut="aigc_engine._native:pointwise_direct",
        tensors=Range(1, 8),
        steps=Range(0, 24),
        axes=Range(0, 8),
        tensor_dtypes=frozenset({"float32 and bfloat16"}),
    ),
    _native("resize2d", "resample"),
    _native("rms_norm", "norm", result=NORM_RESULTS),
    _native("sample_token", "decode"),
    _native("swiglu", "activation"),
)


def lines_of(op: str) -> tuple[Line, ...]:
    """The op's lines in priority order."""
    return tuple(line for line in LINES if line.op == op)
