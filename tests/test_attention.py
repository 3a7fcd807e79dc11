"""attention beyond parity: what a query's bits may depend on, products, shapes it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aigc_engine import native, ops
from aigc_engine.dispatch import use_backend
from aigc_engine.native.attention import attend
from aigc_engine.testing import parity_failure

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def qkv(T: int, S: int, D: int, dtype: torch.dtype, B: int = 1, N: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((B, N, n, D), generator=g).to(dtype) for n in (T, S, S))
    return q, k, v


@DTYPES
def test_a_query_alone_has_the_bits_it_has_among_others(isa_level: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(150, 300, 40, dtype)
    bias = torch.randn(1, 1, 150, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    with use_backend("native"):
        whole, biased = ops.attention(q, k, v), ops.attention(q, k, v, mask=bias)
        for t in (0, 15, 16, 33, 127, 128, 149):
            one = slice(t, t + 1)
            assert torch.equal(ops.attention(q[:, :, one], k, v), whole[:, :, one]), t
            alone = ops.attention(q[:, :, one], k, v, mask=bias[:, :, one])
            assert torch.equal(alone, biased[:, :, one]), t


@DTYPES
def test_causal_rows_ignore_what_comes_later(isa_level: str, dtype: torch.dtype) -> None:
    """Whole blocks of keys are left out for some rows of a group and not for others."""
    q, k, v = qkv(530, 530, 24, dtype, N=1)
    with use_backend("native"):
        whole = ops.attention(q, k, v, causal=True)
        for length in (1, 127, 129, 255, 257, 300):
            first = slice(0, length)
            prefix = ops.attention(q[:, :, first], k[:, :, first], v[:, :, first], causal=True)
            assert torch.equal(prefix, whole[:, :, first]), length


@DTYPES
def test_forbidden_keys_leave_no_trace(isa_level: str, dtype: torch.dtype) -> None:
    """Keys forbidden by a mask weigh exactly nothing: the bits are those of other values in their place."""
    q, k, v = qkv(20, 700, 32, dtype)
    keep = torch.zeros(1, 700, dtype=torch.bool)
    keep[:, 5:20] = keep[:, 300:310] = True
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, ~keep[0]], other_v[:, :, ~keep[0]] = 9.0, -7.0
    with use_backend("native"):
        expected = ops.attention(q, k, v, mask=keep)
        assert torch.equal(ops.attention(q, other_k, other_v, mask=keep), expected)
        assert torch.equal(ops.attention(q, k, v, mask=keep[:, None, None].expand(1, 2, 20, 700)), expected)


@pytest.mark.parametrize(("product", "share"), [("split", 2.0**-14), ("bfloat16", 2.0**-6)])
def test_products_of_float32(isa_level: str, product: str, share: float) -> None:
    """Two bfloat16 terms leave out 2^-16 of each factor, one leaves out 2^-9."""
    q, k, v = qkv(50, 300, 72, torch.float32)
    got = attend(product, q, k, v, None, False, None)
    truth = ops.attention.reference(q.double(), k.double(), v.double())
    assert (got - truth).abs().max() < share * truth.abs().max()


def test_high_precision_splits_where_there_are_tiles() -> None:
    q, k, v = qkv(5, 40, 32, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with native.force_isa("amx_emulated"), use_backend("native"):
            assert torch.equal(ops.attention(q, k, v), attend("split", q, k, v, None, False, None))
        with native.force_isa("portable"), use_backend("native"):
            assert torch.equal(ops.attention(q, k, v), attend("float32", q, k, v, None, False, None))
    finally:
        torch.set_float32_matmul_precision(before)


@DTYPES
def test_more_heads_than_the_workspace_holds(isa_level: str, dtype: torch.dtype) -> None:
    """Heads go in groups of 16 MiB; results are those of the heads by themselves."""
    q, k, v = qkv(2, 9000, 128, dtype, N=6)
    with use_backend("native"):
        whole = ops.attention(q, k, v)
        for n in (0, 5):
            head = slice(n, n + 1)
            assert torch.equal(ops.attention(q[:, head], k[:, head], v[:, head]), whole[:, head])
    truth = ops.attention.reference(q.double(), k.double(), v.double())
    assert parity_failure(whole, ops.attention.reference(q, k, v), truth) is None


def test_result_follows_the_layout_of_q() -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(9, 9, 16, torch.float32))
    with use_backend("native"):
        assert ops.attention(q, k, v).stride() == q.stride()


def test_not_a_number_stays_one() -> None:
    q, k, v = qkv(3, 20, 16, torch.float32)
    q[0, 0, 1, 3] = torch.nan
    with use_backend("native"):
        got = ops.attention(q, k, v)
    assert got[0, 0, 1].isnan().all()
    assert torch.equal(got.isnan().any(-1), q.isnan().any(-1))


def test_heads_must_divide() -> None:
    q, _, _ = qkv(3, 20, 16, torch.float32)
    k = torch.zeros(1, 3, 20, 16)
    with pytest.raises(ValueError, match="attention: k has 3 heads, expected a divisor of q's 2"):
        ops.attention(q, k, k)
