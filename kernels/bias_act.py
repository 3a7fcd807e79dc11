"""bias_act on the GPU: one read of x, one write of the result.

Memory-bound: 2 x element size bytes and at most about 30 instructions (gelu) per element. An H100 moves
3.35 TB/s and issues 28 T lane-instructions/s, so a bfloat16 element has 34 of them: no division per element
fits. Hence a (rows, cols) view in which the bias is constant along an axis; only its row index is divided.
2,048 elements per program of 128 threads put 32 to 64 bytes per thread in flight; about 16 hide the latency.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_engine.kernels._launch import device_of

BLOCK = 2048
NUM_WARPS = 4


@triton.jit
def _tanh(x):
    # 1 - 2 / (e^{2|x|} + 1) cancels below about 0.6: there the odd Taylor-like polynomial of csrc/cpu.
    magnitude = tl.abs(x)
    z = x * x
    p = -5.70498872745e-3
    p = p * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    return tl.where(magnitude < 0.625, p * z * x + x, tl.where(x < 0.0, -far, far))


@triton.jit
def _activate(x, slope, ACT: tl.constexpr):
    if ACT == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACT == "leaky_relu":
        x = tl.where(x < 0.0, x * slope, x)
    elif ACT == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # 0.5 (1 + tanh u) = sigmoid(2u)
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACT == "tanh":
        x = _tanh(x)
    elif ACT == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(ACT == "none")
    return x


@triton.jit
def bias_act_kernel(
    x_ptr,
    bias_ptr,
    out_ptr,
    rows,
    cols,
    channels,
    slope,
    gain,
    clamp,
    ACT: tl.constexpr,
    BIAS: tl.constexpr,  # "none", "rows" (channel = row % channels) or "cols" (channel = col)
    CLAMP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    col_blocks = tl.cdiv(cols, BLOCK_C)
    row = tl.program_id(0) // col_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    col = tl.program_id(0) % col_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offset = row.to(tl.int64)[:, None] * cols + col[None, :]
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if BIAS == "rows":
        x += tl.load(bias_ptr + row % channels).to(tl.float32)[:, None]
    elif BIAS == "cols":
        x += tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)[None, :]
    y = _activate(x, slope, ACT) * gain
    if CLAMP:
        # Comparisons that are false for NaN, so that it stays one, as torch.clamp has it.
        y = tl.where(y > clamp, clamp, y)
        y = tl.where(y < -clamp, -clamp, y)
    tl.store(out_ptr + offset, y, mask=inside)


def tile(cols: int) -> tuple[int, int]:
    """(rows, cols) of a program's tile."""
    block_c = min(triton.next_power_of_2(cols), BLOCK)
    return BLOCK // block_c, block_c


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """Launches the kernel; see `aigc_engine.ops.bias_act`."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if not channels_last:
        x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    channels = x.shape[1]
    inner = math.prod(x.shape[2:])
    if bias is None:
        layout, cols = "none", x.numel()
    elif channels_last or inner == 1:
        layout, cols = "cols", channels
    else:
        layout, cols = "rows", inner
    rows = x.numel() // cols
    block_r, block_c = tile(cols)
    grid = (triton.cdiv(rows, block_r) * triton.cdiv(cols, block_c),)
    with device_of(x):
        bias_act_kernel[grid](
            x,
            x if bias is None else bias.contiguous(),
            out,
            rows,
            cols,
            channels,
            slope,
            gain,
            0.0 if clamp is None else clamp,
            ACT=act,
            BIAS=layout,
            CLAMP=clamp is not None,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return out
