"""What the generated parity tests don't say of int8 linear layers: their error, their bits, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine import _native, native
from aigc_engine.dispatch import explain, use_backend
from aigc_engine.ops import linear, pack_linear
from aigc_engine.ops.int8 import quantise

LEVELS = [name for name, _, supported in native.isa_levels() if supported]
G = torch.Generator()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=G.manual_seed(seed))


def relative(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 512, 256), (33, 2048, 100)])
def test_error_on_gaussian_data(isa_level: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Steps of max / 127 with max near 3.3 sigma: 3.3 / 127 / sqrt(12) = 0.75 % from x and as much from w."""
    M, K, N = shape
    x, w = randn(M, K).to(dtype), (randn(N, K, seed=1) / math.sqrt(K)).to(dtype)
    packed = pack_linear(w, quantize="int8")
    with use_backend("native"):
        got = linear(x, packed)
    assert 0.005 < relative(got, F.linear(x.double(), w.double())) < 0.015
    q, scales = quantise(w)
    assert packed.error == pytest.approx(relative(q * scales, w), rel=1e-4)
    assert 0.004 < packed.error < 0.011


@pytest.mark.parametrize(
    ("shape", "act"),
    [((1, 70, 33), "none"), ((37, 64, 32), "gelu"), ((50, 2200, 96), "swiglu"), ((33, 1100, 100), "silu")],
)
def test_all_levels_give_the_same_bits(shape: tuple[int, int, int], act: str) -> None:
    M, K, N = shape
    x, packed = randn(M, K), pack_linear(randn(N, K, seed=1), quantize="int8")
    results = []
    for level in LEVELS:
        with native.force_isa(level), use_backend("native"):
            results.append(linear(x, packed, act=act))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_deepest_sums_are_exact(isa_level: str) -> None:
    """All of 2^17 products 127 * 127, and of 127 * -127: 2.1e9, close to int32's end."""
    K = 2**17
    x, w = torch.full((2, K), 127.0), torch.full((3, K), 127.0)
    x[1] = w[2] = -127.0
    with use_backend("native"):
        got = linear(x, pack_linear(w, quantize="int8"))
    sums = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]) * float(127 * 127 * K)
    assert torch.equal(got, sums)


def test_ties_go_to_even(isa_level: str) -> None:
    ties = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5])
    x = torch.full((8, 17), 127.0)
    x[:, 9] = ties
    w = torch.zeros(1, 17)
    w[0, 9] = 127.0
    expected = torch.tensor([0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0, -126.0])
    with use_backend("native"):
        got = linear(x, pack_linear(w, quantize="int8"))
    assert torch.equal(got[:, 0], expected * 127.0)


def test_zero_and_not_finite_rows(isa_level: str) -> None:
    x, packed = randn(20, 100), pack_linear(randn(40, 100, seed=1), quantize="int8")
    with use_backend("native"):
        clean = linear(x, packed)
        x[3], x[5, 99], x[17, 0], x[18, 50] = 0.0, torch.nan, torch.inf, -torch.inf
        got = linear(x, packed)
    bad = [5, 17, 18]
    assert got[bad].isnan().all()
    assert torch.equal(got[3], torch.zeros(40))
    rest = [row for row in range(20) if row not in (3, *bad)]
    assert torch.equal(got[rest], clean[rest])


def test_scales_of_any_size(isa_level: str) -> None:
    """A power of two changes no integer; rows that are faint all along are zero."""
    x, packed = randn(3, 100), pack_linear(randn(40, 100, seed=1), quantize="int8")
    with use_backend("native"):
        plain = linear(x, packed)
        for power in (-90, 100):
            assert torch.equal(linear(x * 2.0**power, packed), plain * 2.0**power)
        for faint in (2.0**-110, 2.0**-130, 2.0**-149):
            assert torch.equal(linear(x * faint, packed), torch.zeros(3, 40))


def test_zero_weights(isa_level: str) -> None:
    w = randn(20, 30)
    w[7] = 0.0
    with use_backend("native"):
        got = linear(randn(4, 30, seed=1), pack_linear(w, quantize="int8"), torch.full((20,), 2.0))
    assert torch.equal(got[:, 7], torch.full((4,), 2.0))
    assert pack_linear(torch.zeros(2, 3), quantize="int8").error == 0.0


def test_scratch_left_as_it_was_found(isa_level: str) -> None:
    """Nothing that a kernel reads of its scratch is what happened to be there."""
    x, packed = randn(37, 700), pack_linear(randn(50, 700, seed=1), quantize="int8")
    with use_backend("native"):
        first = linear(x, packed)
        _native.poison_scratch(True)
        try:
            again = linear(x, packed)
        finally:
            _native.poison_scratch(False)
    assert torch.equal(first, again)


def test_what_the_packed_weight_says() -> None:
    w = randn(20, 30).bfloat16()
    packed = pack_linear(w, quantize="int8")
    assert packed.product == "int8"
    assert packed.scales is not None
    assert packed.scales.shape == (20,)
    assert torch.equal(packed.scales, w.float().abs().amax(dim=1) / 127)
    assert explain(linear, randn(2, 30).bfloat16(), packed).runs == "native"
    plain = pack_linear(w)
    assert (plain.scales, plain.column_sums, plain.error) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: pack_linear(randn(2, 3), quantize="int4"),
            ValueError,
            r"pack_linear: quantize 'int4', expected one of \['int8'\], or None",
        ),
        (
            lambda: pack_linear(randn(2, 3).double(), quantize="int8"),
            TypeError,
            "pack_linear: weight torch.float64, expected",
        ),
        (
            lambda: pack_linear(torch.tensor([[1.0, torch.nan]]), quantize="int8"),
            ValueError,
            "pack_linear: weight has non-finite values, expected finite ones",
        ),
        (
            lambda: pack_linear(torch.tensor([[1.0, torch.inf]]), quantize="int8"),
            ValueError,
            "pack_linear: weight has non-finite values",
        ),
        (
            lambda: pack_linear(torch.ones(1, 2**17 + 1), quantize="int8"),
            ValueError,
            r"weight shape \(1, 131073\), expected a depth of at most 131072",
        ),
        (
            lambda: linear(randn(2, 3).bfloat16(), pack_linear(randn(2, 3), quantize="int8")),
            TypeError,
            "linear: weight torch.float32, expected torch.bfloat16 as x",
        ),
    ],
)
def test_bad_input(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
