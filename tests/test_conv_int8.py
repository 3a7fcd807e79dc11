"""What the generated parity tests don't say of int8 convolutions: their error, their bits, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine import _native, native
from aigc_engine.dispatch import explain, use_backend
from aigc_engine.ops import conv2d, linear, pack_conv2d, pack_linear
from aigc_engine.ops.int8 import quantise

LEVELS = [name for name, _, supported in native.isa_levels() if supported]
G = torch.Generator()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=G.manual_seed(seed))


def nhwc(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def relative(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("C", "groups", "taps"), [(64, 1, 3), (96, 3, 3), (192, 1, 1)])
def test_error_on_gaussian_data(isa_level: str, C: int, groups: int, taps: int, dtype: torch.dtype) -> None:
    """Steps of max / 127 with max near 3.3 sigma: 3.3 / 127 / sqrt(12) = 0.75 % from x and as much from w."""
    x = nhwc(2, C, 7, 6).to(dtype)
    w = (randn(48, C // groups, taps, taps, seed=1) / math.sqrt(C * taps * taps)).to(dtype)
    packed = pack_conv2d(w, groups=groups, quantize="int8")
    with use_backend("native"):
        got = conv2d(x, packed, groups=groups, padding=taps // 2)
    truth = F.conv2d(x.double(), w.double(), None, 1, taps // 2, 1, groups)
    assert 0.004 < relative(got, truth) < 0.015
    q, scales = quantise(w.flatten(1))
    assert packed.error == pytest.approx(relative(q * scales, w.flatten(1)), rel=1e-4)
    assert 0.003 < packed.error < 0.011


@pytest.mark.parametrize(
    ("shape", "groups", "options"),
    [
        ((1, 3, 5, 5), 1, {}),
        ((2, 64, 6, 7), 1, {"act": "gelu", "padding": 1}),
        ((2, 36, 9, 9), 3, {"stride": 2, "padding": (0, 1, 0, 1)}),
        ((1, 260, 7, 7), 1, {"act": "silu", "dilation": 2}),
    ],
)
def test_all_levels_give_the_same_bits(shape: tuple[int, ...], groups: int, options: dict) -> None:
    x = nhwc(*shape)
    packed = pack_conv2d(randn(33, shape[1] // groups, 3, 3, seed=1), groups=groups, quantize="int8")
    results = []
    for level in LEVELS:
        with native.force_isa(level), use_backend("native"):
            results.append(conv2d(x, packed, groups=groups, **options))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lone_tap_has_the_bits_of_linear(isa_level: str, dtype: torch.dtype) -> None:
    x, w = nhwc(2, 70, 5, 4).to(dtype), randn(40, 70, seed=1).to(dtype)
    with use_backend("native"):
        got = conv2d(x, pack_conv2d(w[:, :, None, None], quantize="int8"))
        rows = linear(x.permute(0, 2, 3, 1), pack_linear(w, quantize="int8"))
    assert torch.equal(got.permute(0, 2, 3, 1), rows)


@pytest.mark.parametrize("groups", [1, 2])
def test_integers_are_exact(isa_level: str, groups: int) -> None:
    """A largest magnitude of 127 in each patch, and of each weight, makes the scales 1."""
    x = nhwc(2, 12, 6, 7).mul(40).round().clamp(-126, 126)
    w = randn(34, 12 // groups, 3, 3, seed=1).mul(40).round().clamp(-126, 126)
    x[:, :: 12 // groups], w[:, 1, 2, 0] = 127.0, -127.0
    bias = randn(34, seed=2).mul(9).round()
    with use_backend("native"):
        packed = pack_conv2d(w, groups=groups, quantize="int8")
        got = conv2d(x, packed, bias, groups=groups, padding=1, act="relu")
    truth = F.relu(F.conv2d(x.double(), w.double(), bias.double(), 1, 1, 1, groups))
    assert torch.equal(got.double(), truth)
    assert packed.error == 0.0


def test_a_patch_has_its_own_scale(isa_level: str) -> None:
    """A large pixel costs those patches precision that it's in, and no other a bit."""
    x, packed = nhwc(1, 16, 9, 9), pack_conv2d(randn(20, 16, 3, 3, seed=1), quantize="int8")
    with use_backend("native"):
        clean = conv2d(x, packed, padding=1)
        x[0, 3, 4, 4] = 1e4
        got = conv2d(x, packed, padding=1)
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[3:6, 3:6] = True
    assert torch.equal(got[..., ~near], clean[..., ~near])
    assert not (got == clean)[..., near].any()


def test_a_sample_has_its_bits_in_every_batch(isa_level: str) -> None:
    x, packed = nhwc(5, 20, 7, 6), pack_conv2d(randn(40, 20, 3, 3, seed=1), quantize="int8")
    with use_backend("native"):
        whole = conv2d(x, packed, padding=1)
        for first, last in ((0, 1), (3, 4), (1, 5)):
            assert torch.equal(conv2d(x[first:last], packed, padding=1), whole[first:last])


def test_scratch_left_as_it_was_found(isa_level: str) -> None:
    """Nothing that a kernel reads of its scratch is what happened to be there."""
    x, packed = nhwc(2, 37, 7, 6), pack_conv2d(randn(50, 37, 3, 3, seed=1), quantize="int8")
    with use_backend("native"):
        first = conv2d(x, packed, padding=1)
        _native.poison_scratch(True)
        try:
            again = conv2d(x, packed, padding=1)
        finally:
            _native.poison_scratch(False)
    assert torch.equal(first, again)


def test_what_the_packed_weight_says() -> None:
    w = randn(20, 6, 3, 3).bfloat16()
    packed = pack_conv2d(w, groups=2, quantize="int8")
    assert packed.product == "int8"
    assert packed.groups == 2
    assert packed.scales is not None
    # Two groups of 10: each begins where a panel of 16 does.
    expected = w.float().abs().amax(dim=(1, 2, 3)) / 127
    assert torch.equal(packed.scales[:10], expected[:10])
    assert torch.equal(packed.scales[16:], expected[10:])
    assert explain(conv2d, nhwc(2, 12, 5, 5).bfloat16(), packed, groups=2).runs == "native"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: pack_conv2d(randn(2, 3, 1, 1), quantize="int4"),
            ValueError,
            r"pack_conv2d: quantize 'int4', expected one of \['int8'\], or None",
        ),
        (
            lambda: pack_conv2d(torch.full((2, 3, 1, 1), torch.nan), quantize="int8"),
            ValueError,
            "pack_conv2d: weight has non-finite values, expected finite ones",
        ),
        (
            lambda: pack_conv2d(torch.ones(1, 2**15, 2, 3), quantize="int8"),
            ValueError,
            r"weight shape \(1, 32768, 2, 3\), expected a depth of at most 131072",
        ),
        (
            lambda: conv2d(nhwc(1, 3, 4, 4).bfloat16(), pack_conv2d(randn(2, 3, 1, 1), quantize="int8")),
            TypeError,
            "conv2d: weight torch.float32, expected torch.bfloat16 as x",
        ),
    ],
)
def test_bad_input(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
