"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def _is_key_padding(mask: Tensor, q: Tensor, k: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.ndim == 2 and tuple(mask.shape) == (q.shape[0], k.shape[2])


def _check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> None:
    checks.floating("attention", "q", q)
    checks.rank("attention", "q", q, 4, 4)
    B, N, _, D = q.shape
    for name, value in (("k", k), ("v", v)):
        checks.floating("attention", name, value)
        checks.same("attention", name, value, "q", q)
        checks.rank("attention", name, value, 4, 4)
        checks.shape("attention", name, value, (B, k.shape[1], k.shape[2], D))
    if N % k.shape[1] if k.shape[1] else N:
        raise ValueError(f"attention: k has {k.shape[1]} heads, expected a divisor of q's {N}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"attention: scale {scale}, expected a finite number, or None for 1/sqrt(D)")
    if mask is None:
        return
    checks.tensor("attention", "mask", mask)
    if mask.device != q.device:
        raise ValueError(f"attention: mask on {mask.device}, expected {q.device} as q; move one of them")
    if _is_key_padding(mask, q, k):
        return
    if mask.dtype not in (torch.bool, q.dtype):
        raise TypeError(
            f"attention: mask {mask.dtype}, expected torch.bool (True attends) or {q.dtype} (added)"
        )
    wanted = (B, N, q.shape[2], k.shape[2])
    if mask.ndim != 4 or any(m not in (1, w) for m, w in zip(mask.shape, wanted, strict=True)):
        raise ValueError(
            f"attention: mask shape {tuple(mask.shape)}, expected (B, S) of bool, or four axes broadcasting "
            f"to {wanted}"
        )


def _facts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Mapping[str, Any]:
    kind = "none" if mask is None else "key_padding" if _is_key_padding(mask, q, k) else "full"
    return {"D": q.shape[3], "mask": kind, "heads_per_key": q.shape[1] // max(1, k.shape[1])}


def _cost(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[float, float]:
    B, N, T, D = q.shape
    S = k.shape[2]
    share = 0.5 if options.get("causal") else 1.0
    return 4.0 * B * N * T * S * D * share, 2.0 * B * (N * T + k.shape[1] * S) * D * q.element_size()


# (B, N, T, S, D) of attention in models at work.
WORKLOADS = {
    "sd15_64px_self": (2, 8, 4096, 4096, 40),
    "sd15_64px_cross": (2, 8, 4096, 77, 40),
    "sd15_32px_self": (2, 8, 1024, 1024, 80),
    "sd15_16px_self": (2, 8, 256, 256, 160),
    "dit_xl": (2, 16, 256, 256, 72),
    "flux": (1, 24, 1024, 1024, 64),
    "llama_prompt": (1, 12, 2048, 2048, 128),
}


def _scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    if mask is not None and _is_key_padding(mask, q, k):
        mask = mask[:, None, None, :]
    if mask is not None and causal:  # PyTorch takes one or the other
        before = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & before if mask.dtype == torch.bool else mask.masked_fill(~before, -math.inf)
        causal = False
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def qkv(B: int, N: int, T: int, S: int, D: int, shared: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        return randn(B, N, T, D), randn(B, N // shared, S, D), randn(B, N // shared, S, D)

    for D in (8, 16, 17, 32, 40, 64, 72, 80, 128, 160, 256):
        yield Sample(f"head_{D}", qkv(1, 2, 17, 33, D), batch_axis=0)
        yield Sample(f"head_{D}_causal", qkv(1, 1, 33, 33, D), {"causal": True}, batch_axis=0)
    for T, S in ((1, 1), (1, 65), (15, 16), (65, 1), (64, 64), (31, 77), (3, 128), (17, 257), (2, 600)):
        yield Sample(f"{T}_queries_{S}_keys", qkv(2, 1, T, S, 32), batch_axis=0)
    keep = torch.rand((3, 37), generator=g).to(device) < 0.7
    keep[1] = False  # a row with nothing to attend to
    yield Sample("key_padding", qkv(3, 2, 5, 37, 40), {"mask": keep}, batch_axis=0)
    yield Sample("key_padding_causal", qkv(3, 1, 37, 37, 16), {"mask": keep, "causal": True}, batch_axis=0)
    fused = randn(2, 19, 3, 2, 32).permute(2, 0, 3, 1, 4)  # the three as views of one projection
    yield Sample("fused_projection", (fused[0], fused[1], fused[2]), batch_axis=0)
    yield Sample("scaled", qkv(1, 2, 9, 9, 32), {"scale": 0.5}, batch_axis=0)
    yield Sample("large_scores", qkv(1, 1, 8, 40, 64), {"scale": 20.0}, batch_axis=0)
    yield Sample("no_queries", qkv(1, 2, 0, 5, 32))
    yield Sample("no_keys", qkv(1, 2, 3, 0, 32))
    for causal in (False, True):
        name = "causal" if causal else "all"
        yield Sample(f"several_blocks_{name}", qkv(1, 1, 290, 290, 40), {"causal": causal})
        yield Sample(f"grouped_query_{name}", qkv(2, 6, 9, 21, 24, 3), {"causal": causal}, batch_axis=0)
    yield Sample("fewer_keys_causal", qkv(2, 1, 40, 19, 32), {"causal": True}, batch_axis=0)
    keep = torch.rand((2, 3, 11, 140), generator=g).to(device) < 0.5
    keep[0, 1, 2] = False
    yield Sample("bool_mask", qkv(2, 3, 11, 140, 24), {"mask": keep}, batch_axis=0)
    yield Sample("bool_mask_broadcast", qkv(2, 3, 11, 140, 24), {"mask": keep[:, :1, :, :1]}, batch_axis=0)
    bias = randn(1, 3, 11, 300)
    yield Sample("added_mask", qkv(2, 3, 11, 300, 24), {"mask": bias}, batch_axis=0)
    bias = torch.where(torch.rand((2, 1, 1, 140), generator=g).to(device) < 0.5, 0.0, -math.inf).to(dtype)
    yield Sample("added_mask_minus_infinity", qkv(2, 3, 11, 140, 24), {"mask": bias}, batch_axis=0)
    lowest = torch.full((1, 1, 9, 1), torch.finfo(dtype).min, dtype=dtype, device=device)
    yield Sample("added_mask_lowest", qkv(2, 2, 9, 40, 24), {"mask": lowest}, batch_axis=0)
    bias = randn(1, 1, 140, 11).transpose(2, 3)
    yield Sample("added_mask_transposed_causal", qkv(2, 2, 11, 140, 24), {"mask": bias, "causal": True})
    for scale in (-0.3, 0.0):
        yield Sample(f"scale_{scale}", qkv(1, 2, 9, 40, 24), {"scale": scale}, batch_axis=0)
    yield Sample("head_axis_apart", tuple(x.transpose(2, 3) for x in qkv(2, 2, 24, 24, 24)), batch_axis=0)
    whole = torch.randint(-8, 9, (1, 2, 64, 24), generator=g).to(device, dtype)
    yield Sample("integers", (torch.zeros_like(whole), whole, whole), exact=True)  # the mean of 64
    for name, shape in WORKLOADS.items():
        yield Sample(name, qkv(*shape), bench=True)


@op(
    check=_check_attention,
    samples=_samples,
    dtypes=DTYPES,
    facts=_facts,
    cost=_cost,
    tiled=True,
    peer=_scaled_dot_product_attention,
)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention.

    .. math:: y = \operatorname{softmax}(s\, q k^\top + m)\, v

    A query that no key is left for gives zeros.

    References:
        A. Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762
        J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", 2023,
        https://arxiv.org/abs/2305.13245 (heads that share keys and values)

    Args:
        q: (B, N, T, D) float32, bfloat16 or float16, any strides.
        k, v: (B, N / m, S, D) in q's dtype, any strides; m neighbouring heads of q share one head of theirs.
        mask: (B, S) bool, keys that may be attended to; or four axes broadcasting to (B, N, T, S): bool (True
            attends) or q's dtype (added to the scores, which are unit-free).
        causal: query t sees keys 0 to t only (aligned at the first key when T and S differ).
        scale: s; None is 1/sqrt(D).

    Returns:
        (B, N, T, D) in q's dtype.

    Precision: scores, softmax and the weighted sum in float32, rounded once. Backends round the weights to
        bfloat16 where q is; the native one makes float32 products as `pack_linear` says of its precision, and
        a query's bits depend on nothing but its keys, values and mask, and on the ISA level.

    Memory: the reference holds B N T S scores; backends don't. The native one lays keys and values out anew,
        with S and D rounded up to tiles, as many heads at a time as fit in 16 MiB, at least one.

    Raises:
        TypeError: not floating, differing dtypes, or a mask of another dtype.
        ValueError: shapes or devices don't fit, scale isn't finite.
    """
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None and not causal:
        return (torch.softmax(scores, dim=-1) @ v.to(wide)).to(q.dtype)
    allowed = torch.ones((), dtype=torch.bool, device=q.device)
    if mask is not None and mask.dtype == torch.bool:
        allowed = mask[:, None, None, :] if mask.ndim == 2 else mask
    elif mask is not None:
        scores = scores + mask.to(wide)
    if causal:
        t, s = (torch.arange(size, device=q.device) for size in scores.shape[-2:])
        allowed = allowed & (s[None, :] <= t[:, None])
    scores = scores.masked_fill(~allowed, -math.inf)
    empty = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)
    return (weights @ v.to(wide)).to(q.dtype)
