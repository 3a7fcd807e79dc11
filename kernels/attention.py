"""attention on the GPU: online softmax over key blocks, scores never leave the registers.

T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
https://arxiv.org/abs/2307.08691.

4 T S D flops against 2 (T + S) D elements per head: at T = S = 4096 in bfloat16 that is 2,000 flops per byte,
an H100's balance being 295, so what counts is the tensor cores. A power-of-two D would make heads of 40, 72
and 80 pay for 64, 128 and 128; the head is therefore cut into a power of two and a smaller power of two
(32 + 16, 64 + 16, 64 + 16): 48, 80 and 80. float32 multiplies in float32 (no TF32), as torch does by default.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_engine.kernels._launch import device_of

LOG2_E = 1.4426950408889634
SMALLEST_DOT = 16  # tl.dot needs 16 along the axis it sums over


class Config(NamedTuple):
    """Tile sizes and launch shape of one specialisation."""

    block_t: int
    block_s: int
    block_d: int
    tail_d: int
    num_warps: int
    num_stages: int


def config(t: int, d: int, dtype: torch.dtype, masked: bool) -> Config:
    """Chooses the tiles.

    16-bit, D <= 64: 128 queries x 64 keys, 32 rows per warp, so that a block of k or v read from shared
    memory feeds 32 flops per byte (an sm_80 SM does 16 per byte it can read). Shared memory holds
    `num_stages` blocks of k and v: 3 x 2 x 64 x 64 x 2 = 48 KiB, three programs on an SM of 164 KiB;
    registers (255 x 128 threads) allow two. Anything more would spill: D > 64 and a key mask take 8 warps,
    D > 64 and a tail take 32 keys. float32 has no tensor core to feed: half the tile, over 8 warps. Few
    queries take a tile of their own size.
    """
    block_d, tail_d = split_head(d)
    wide = block_d + tail_d > 64
    most = 64 if dtype == torch.float32 else 128
    block_t = min(max(triton.next_power_of_2(t), SMALLEST_DOT), most)
    if dtype == torch.float32:
        return Config(block_t, 16 if wide or tail_d else 32, block_d, tail_d, 8 if block_t == most else 4, 2)
    block_s = 32 if wide or tail_d else 64
    num_warps = 8 if block_t == most and (wide or masked) else 4
    return Config(block_t, block_s, block_d, tail_d, num_warps, 2 if wide else 3)


def split_head(d: int) -> tuple[int, int]:
    """Cuts D into a power of two and a tail (0 or a smaller power of two) that cover it most tightly."""
    whole = max(triton.next_power_of_2(d), SMALLEST_DOT)
    half = whole // 2
    tail = max(triton.next_power_of_2(d - half), SMALLEST_DOT)
    return (half, tail) if tail < half else (whole, 0)


@triton.jit
def _block(ptr, row, stride_row, stride_d, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """(rows, WIDTH) of a head from column FIRST; zeros outside."""
    d = FIRST + tl.arange(0, WIDTH)
    ptrs = ptr + row[:, None] * stride_row + d[None, :] * stride_d
    if FIRST + WIDTH > D:
        inside = inside & (d < D)[None, :]
    return tl.load(ptrs, mask=inside, other=0.0)


@triton.jit
def _attend(
    acc,
    acc_tail,
    highest,
    total,
    q,
    q_tail,
    k_ptr,
    k_s,
    k_d,
    v_ptr,
    v_s,
    v_d,
    mask_ptr,
    mask_s,
    first,
    t,
    s_size,
    scale_log2,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    CHECKED: tl.constexpr,  # whether the block may reach past the last key or above the diagonal
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL_D: tl.constexpr,
):
    """One block of keys: scores, running maximum and sum, and the weighted values added to acc."""
    row = tl.arange(0, BLOCK_S)
    s = first + row
    inside = tl.full((BLOCK_S, 1), True, tl.int1)
    if CHECKED:
        inside = (s < s_size)[:, None]
    k_ptr += first * k_s
    v_ptr += first * v_s
    k = _block(k_ptr, row, k_s, k_d, inside, 0, BLOCK_D, D)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if TAIL_D:
        k_tail = _block(k_ptr, row, k_s, k_d, inside, BLOCK_D, TAIL_D, D)
        scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision="ieee")
    scores *= scale_log2
    if MASK:
        keep = tl.load(mask_ptr + s * mask_s, mask=s < s_size, other=False)
        scores = tl.where(keep[None, :], scores, float("-inf"))
    if CHECKED:
        allowed = (s < s_size)[None, :]
        if CAUSAL:
            allowed = allowed & (s[None, :] <= t[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    # A row that has seen no key yet keeps -inf as its maximum; -inf - -inf would be NaN.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    v = _block(v_ptr, row, v_s, v_d, inside, 0, BLOCK_D, D)
    weights = weights.to(v.dtype)
    acc = tl.dot(weights, v, acc * shrink[:, None], input_precision="ieee")
    if TAIL_D:
        v_tail = _block(v_ptr, row, v_s, v_d, inside, BLOCK_D, TAIL_D, D)
        acc_tail = tl.dot(weights, v_tail, acc_tail * shrink[:, None], input_precision="ieee")
    return acc, acc_tail, higher, total


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    out_ptr,
    q_strides,  # (B, N, T, D), all but D's in units of VECTOR elements; likewise below
    k_strides,
    v_strides,
    out_strides,
    mask_strides,  # (B, S), in elements
    scale_log2,
    heads,
    t_size,
    s_size,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL_D: tl.constexpr,
    VECTOR: tl.constexpr,
):
    b = (tl.program_id(1) // heads).to(tl.int64)
    n = (tl.program_id(1) % heads).to(tl.int64)
    # Products with VECTOR tell the compiler that rows are aligned; otherwise it only knows strides of 16 n.
    q_ptr += (b * q_strides[0] + n * q_strides[1]) * VECTOR
    k_ptr += (b * k_strides[0] + n * k_strides[1]) * VECTOR
    v_ptr += (b * v_strides[0] + n * v_strides[1]) * VECTOR
    out_ptr += (b * out_strides[0] + n * out_strides[1]) * VECTOR
    mask_ptr += b * mask_strides[0]
    q_t, q_d = q_strides[2] * VECTOR, q_strides[3]
    k_s, k_d = k_strides[2] * VECTOR, k_strides[3]
    v_s, v_d = v_strides[2] * VECTOR, v_strides[3]
    o_t, o_d = out_strides[2] * VECTOR, out_strides[3]
    mask_s = mask_strides[1]
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    t_inside = (t < t_size)[:, None]
    q = _block(q_ptr, t, q_t, q_d, t_inside, 0, BLOCK_D, D)
    q_tail, acc_tail = q, 0.0  # unused without a tail
    if TAIL_D:
        q_tail = _block(q_ptr, t, q_t, q_d, t_inside, BLOCK_D, TAIL_D, D)
        acc_tail = tl.zeros((BLOCK_T, TAIL_D), tl.float32)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    highest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)

    end = s_size
    unchecked = s_size // BLOCK_S * BLOCK_S
    if CAUSAL:
        end = tl.minimum(end, (tl.program_id(0) + 1) * BLOCK_T)
        unchecked = tl.minimum(unchecked, tl.program_id(0) * BLOCK_T // BLOCK_S * BLOCK_S)
    # Blocks that lie wholly inside, and below the diagonal, need no comparisons: nearly all of them.
    for first in range(0, unchecked, BLOCK_S):
        acc, acc_tail, highest, total = _attend(
            acc, acc_tail, highest, total, q, q_tail, k_ptr, k_s, k_d, v_ptr, v_s, v_d, mask_ptr, mask_s,
            first, t, s_size, scale_log2, D, CAUSAL, MASK, False, BLOCK_S, BLOCK_D, TAIL_D,
        )  # fmt: skip
    for first in range(unchecked, end, BLOCK_S):
        acc, acc_tail, highest, total = _attend(
            acc, acc_tail, highest, total, q, q_tail, k_ptr, k_s, k_d, v_ptr, v_s, v_d, mask_ptr, mask_s,
            first, t, s_size, scale_log2, D, CAUSAL, MASK, True, BLOCK_S, BLOCK_D, TAIL_D,
        )  # fmt: skip

    total = tl.where(total == 0.0, 1.0, total)[:, None]  # no key at all: zeros
    d = tl.arange(0, BLOCK_D)
    ptrs = out_ptr + t[:, None] * o_t + d[None, :] * o_d
    tl.store(ptrs, acc / total, mask=t_inside & (d < D)[None, :])
    if TAIL_D:
        d_tail = BLOCK_D + tl.arange(0, TAIL_D)
        ptrs = out_ptr + t[:, None] * o_t + d_tail[None, :] * o_d
        tl.store(ptrs, acc_tail / total, mask=t_inside & (d_tail < D)[None, :])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Launches the kernel; see `aigc_engine.ops.attention`. `mask` is a key-padding mask (B, S)."""
    batch, heads, t, d = q.shape
    out = torch.empty_like(q)
    if out.numel() == 0:
        return out
    tiles = config(t, d, q.dtype, mask is not None)
    grid = (triton.cdiv(t, tiles.block_t), batch * heads)
    vector = _vector(q, k, v, out)
    with device_of(q):
        attention_kernel[grid](
            q,
            k,
            v,
            q if mask is None else mask,
            out,
            *(_in_vectors(x, vector) for x in (q, k, v, out)),
            (0, 0) if mask is None else mask.stride(),
            (1.0 / math.sqrt(d) if scale is None else scale) * LOG2_E,
            heads,
            t,
            k.shape[2],
            D=d,
            CAUSAL=causal,
            MASK=mask is not None,
            BLOCK_T=tiles.block_t,
            BLOCK_S=tiles.block_s,
            BLOCK_D=tiles.block_d,
            TAIL_D=tiles.tail_d,
            VECTOR=vector,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )
    return out


def _vector(*tensors: Tensor) -> int:
    """Elements, at most eight, that all strides of batches, heads and rows are multiples of: 1, 2, 4 or 8.

    16-bit rows of eight are 16 bytes, the widest load. Triton itself asks of a stride only whether 16 divides
    it, which 40 and 72 fail.
    """
    divisor = math.gcd(8, *(stride for x in tensors for stride in x.stride()[:3]))
    return divisor & -divisor


def _in_vectors(x: Tensor, vector: int) -> tuple[int, ...]:
    *outer, last = x.stride()
    return (*(stride // vector for stride in outer), last)
