"""Gives Triton's interpreter the bfloat16 arithmetic of the hardware.

Triton 3.9 keeps bfloat16 as raw 16-bit words in the interpreter, which truncates where a GPU rounds to
nearest even, and multiplies the words as integers in `tl.dot` (closed as unsupported:
https://github.com/triton-lang/triton/issues/11584). Kernels that are right on a GPU would fail here, and
wrong ones could pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(words: np.ndarray) -> np.ndarray:
    """bfloat16 words as float32, exactly."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 words, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def repair() -> None:
    """Replaces the interpreter's casts from and to bfloat16, and its dot, in this process."""
    plain_cast, plain_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast(self: Any, src: TensorHandle, dst_type: Any) -> TensorHandle:
        kinds = (src.dtype.scalar, dst_type.scalar)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widen(src.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(narrow(src.data), tl.bfloat16)
        return plain_cast(self, src, dst_type)

    def dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *options: Any) -> TensorHandle:
        wide = [cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return plain_dot(self, *wide, d, *options)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_dot = dot
