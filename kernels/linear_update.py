"""linear_update on the GPU: one read per term, one write, the noise made in registers.

Memory-bound: with two float32 terms 12 bytes per element, which an H100 moves at 0.28 T elements/s. Philox
costs about 100 instructions per 4 elements and Box-Muller 30 per element, 0.5 T elements/s: the noise hides
behind the loads. 1,024 elements per program of 128 threads put 32 bytes per term and thread in flight.

The bits are those of `ops.philox_normal` and of csrc/cpu: multiplications and additions are not contracted
(enable_fp_fusion=False), the square root is correctly rounded, and the polynomials are the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_engine.kernels._launch import device_of

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _radius(word):
    """sqrt(-2 ln((word + 1/2) / 2^32)); see ops/random.py."""
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    above = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (above >> 23).to(tl.float32)
    f = ((above & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    p = p * f * z
    p = p + e * -2.12194440e-4
    p = p - z * 0.5
    log = f + p + e * 0.693359375
    return tl.sqrt_rn(log * -2.0)


@triton.jit
def _cos_sin(word):
    """Cosine and sine of 2 pi word / 2^32; see ops/random.py."""
    quarter = (word + 0x20000000) >> 30  # wraps in 32 bits: already modulo 4
    x = (word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    z = x * x
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * x + x
    c = z * 2.443315711809948e-5 - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - z * 0.5 + 1.0
    odd = (quarter & 1) == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    cosine = tl.where(((quarter + 1) & 2) == 2, -cosine, cosine)
    sine = tl.where((quarter & 2) == 2, -sine, sine)
    return cosine, sine


@triton.jit
def _normals(seed, stream, first, COUNT: tl.constexpr):
    """Elements [first, first + COUNT) of the row of normals; both multiples of 4."""
    block = first // 4 + tl.arange(0, COUNT // 4)
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    stream_low = (stream + tl.zeros_like(block)).to(tl.uint32)
    stream_high = ((stream >> 32) + tl.zeros_like(block)).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, stream_low, stream_high)
    r0 = _radius(w0)
    cos0, sin0 = _cos_sin(w1)
    r1 = _radius(w2)
    cos1, sin1 = _cos_sin(w3)
    # [i, j] of the last two axes: pair i, (cosine, sine) j.
    return tl.reshape(tl.join(tl.join(r0 * cos0, r1 * cos1), tl.join(r0 * sin0, r1 * sin1)), (COUNT,))


@triton.jit
def linear_update_kernel(
    terms,  # pointers, one per term
    strides,  # elements between the rows of each term
    coefficients_ptr,
    noise_scale_ptr,
    seeds_ptr,
    streams_ptr,
    out_ptr,
    out_stride,
    n,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    coefficients_ptr += b * len(terms)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(len(terms)):
        c = tl.load(coefficients_ptr + j)
        # A term that doesn't count isn't read, and adds 0 to a total that is never -0.
        length = tl.where(c != 0.0, n, 0)
        term = tl.load(terms[j] + b * strides[j] + i, mask=i < length, other=0.0).to(tl.float32)
        total += c * term
    if NOISE:
        s = tl.load(noise_scale_ptr + b)
        if s != 0.0:
            total += s * _normals(tl.load(seeds_ptr + b), tl.load(streams_ptr + b), first, BLOCK)
    tl.store(out_ptr + b * out_stride + i, total, mask=i < n)


def linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Launches the kernel; see `aigc_engine.ops.linear_update`."""
    lead = terms[0]
    result = (
        out
        if out is not None and _contiguous_rows(out)
        else torch.empty(lead.shape, dtype=lead.dtype, device=lead.device)
    )
    if lead.numel() == 0:
        return result
    rows = lead.shape[0]
    n = lead.numel() // rows
    terms = tuple(term if _contiguous_rows(term) else term.contiguous() for term in terms)
    noise = (noise_scale, seeds, streams)
    with device_of(lead):
        linear_update_kernel[(triton.cdiv(n, BLOCK), rows)](
            terms,
            tuple(term.stride(0) for term in terms),
            coefficients.contiguous(),
            *(lead if number is None else number.contiguous() for number in noise),
            result,
            result.stride(0),
            n,
            NOISE=noise_scale is not None,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return result if out is None or result is out else out.copy_(result)


def _contiguous_rows(x: Tensor) -> bool:
    return x.is_contiguous() or (len(x) > 0 and x[0].is_contiguous())
