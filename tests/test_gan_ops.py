"""upfirdn2d and modulated_conv2d against their definitions, written out element by element."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from aigc_engine.ops import modulated_conv2d, upfirdn2d
from aigc_engine.testing import to_float64


def integers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def normals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filtered(x, taps, up, down, left, right, flip):
    """One axis by the formula: y[i] = sum_k h[k] u[down i + K - 1 - k], on Python numbers."""
    u = [0.0] * left if left > 0 else []
    body = [value for sample in x for value in [sample, *[0.0] * (up - 1)]]
    u = u + body[max(0, -left) :] + [0.0] * max(0, right)
    if right < 0:
        u = u[:right]
    K = len(taps)
    order = taps if flip else taps[::-1]
    return [sum(order[k] * u[i + k] for k in range(K)) for i in range(0, len(u) - K + 1, down)]


@pytest.mark.parametrize(
    ("up", "down", "padding", "flip"),
    [*itertools.product((1, 2, 3), (1, 2, 3), ((0, 0), (2, 1), (-1, 3), (4, -2)), (False, True))],
)
def test_upfirdn2d_is_its_formula_along_each_axis(up, down, padding, flip):
    taps = [1.0, -2.0, 3.0]
    row = integers(0, 7)
    want = filtered(row.tolist(), taps, up, down, *padding, flip)
    along_x = {"up": (up, 1), "down": (down, 1), "padding": (*padding, 0, 0), "flip": flip}
    along_y = {"up": (1, up), "down": (1, down), "padding": (0, 0, *padding), "flip": flip}
    assert upfirdn2d(row.view(1, 1, 1, 7), torch.tensor([taps]), **along_x).flatten().tolist() == want
    assert upfirdn2d(row.view(1, 1, 7, 1), torch.tensor(taps)[:, None], **along_y).flatten().tolist() == want


def test_upfirdn2d_of_a_vector_is_that_of_its_outer_product():
    x, taps = integers(0, 2, 3, 6, 7), torch.tensor([1.0, 2.0, -1.0, 3.0])
    arguments = {"up": 2, "down": 3, "padding": (3, 2, 1, 4)}
    assert torch.equal(upfirdn2d(x, taps, **arguments), upfirdn2d(x, torch.outer(taps, taps), **arguments))
    assert not torch.equal(upfirdn2d(x, taps, **arguments), upfirdn2d(x, taps, flip=True, **arguments))


def test_upfirdn2d_keeps_constants_where_the_filter_lies_inside():
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    ones = torch.ones(1, 2, 8, 8)
    up = upfirdn2d(ones, binomial, up=2, padding=(2, 1, 2, 1), gain=4.0)
    assert up.shape == (1, 2, 16, 16)
    assert torch.equal(up[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    down = upfirdn2d(ones, binomial, down=2, padding=1)
    assert down.shape == (1, 2, 4, 4)
    assert torch.equal(down[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_upfirdn2d_in_bfloat16_rounds_once():
    x, taps = normals(0, 2, 3, 9, 9).bfloat16(), normals(1, 4, 4)
    got = upfirdn2d(x, taps, up=2, padding=3)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, upfirdn2d(x.float(), taps, up=2, padding=3).bfloat16())


def modulated_by_definition(x, w, s, eps=1e-8, demodulate=True, padding=0):
    rows = []
    for image, style in zip(x, s, strict=True):
        own = w * style[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + eps).sqrt()
        rows.append(F.conv2d(image[None], own, padding=padding))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("K", "padding", "demodulate"), [(3, 1, True), (3, 0, False), (1, 0, True), (5, 2, True)]
)
def test_modulated_conv2d_is_a_convolution_by_each_sample_own_weight(K, padding, demodulate):
    x, w, s = normals(0, 3, 5, 8, 9).double(), normals(1, 4, 5, K, K).double(), normals(2, 3, 5).double()
    got = modulated_conv2d(x, w, s, padding=padding, demodulate=demodulate)
    want = modulated_by_definition(x, w, s, demodulate=demodulate, padding=padding)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_demodulation_gives_unit_variance_to_unit_noise():
    x, w = normals(0, 2, 16, 64, 64), 30 * normals(1, 8, 16, 3, 3)
    y = modulated_conv2d(x, w, 5 * normals(2, 2, 16), padding=1)
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1].std((2, 3)), torch.ones(2, 8), rtol=0.08, atol=0)


def test_modulated_conv2d_of_zero_styles_is_zero_and_finite():
    y = modulated_conv2d(normals(0, 1, 3, 4, 4), normals(1, 2, 3, 3, 3), torch.zeros(1, 3), padding=1)
    assert torch.equal(y, torch.zeros(1, 2, 4, 4))


def test_resampling_composes_with_the_convolution():
    x, w, s = normals(0, 2, 5, 8, 8), normals(1, 4, 5, 3, 3), normals(2, 2, 5)
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    up = modulated_conv2d(x, w, s, up=2, padding=1, kernel=binomial)
    assert up.shape == (2, 4, 16, 16)
    first = upfirdn2d(x, binomial, up=2, padding=(2, 1, 2, 1), gain=4.0)
    torch.testing.assert_close(up[:, :, 1:-1, 1:-1], modulated_conv2d(first, w, s), rtol=1e-4, atol=1e-4)
    down = modulated_conv2d(x, w, s, down=2, padding=1, kernel=binomial)
    assert down.shape == (2, 4, 4, 4)
    whole = F.pad(x, (2, 2, 2, 2))
    torch.testing.assert_close(
        down, upfirdn2d(modulated_conv2d(whole, w, s), binomial, down=2), rtol=1e-4, atol=1e-4
    )


def test_noise_is_added_after_demodulation():
    x, w, s = normals(0, 2, 5, 8, 8), normals(1, 4, 5, 3, 3), normals(2, 2, 5)
    noise = normals(3, 2, 1, 8, 8)
    got = modulated_conv2d(x, w, s, padding=1, noise=noise)
    assert torch.equal(got, modulated_conv2d(x, w, s, padding=1) + noise)


@pytest.mark.parametrize("op", [upfirdn2d, modulated_conv2d], ids=lambda op: op.name)
def test_samples_run_and_leave_their_inputs(op):
    for dtype in op.dtypes:
        for sample in op.samples(dtype, "cpu"):
            if sample.bench:
                flops, data = op.cost(*sample.args, **sample.kwargs)
                assert flops > 0 and data > 0
                continue
            before = [tensor.clone() for tensor in sample.args]
            got = op(*sample.args, **sample.kwargs)
            assert got.dtype == dtype
            assert all(torch.equal(a, b) for a, b in zip(before, sample.args, strict=True))
            truth = op(*to_float64(sample.args), **to_float64(dict(sample.kwargs)))
            scale = truth.abs().max().item() if truth.numel() else 0.0
            tolerance = 4e-6 if dtype == torch.float32 else 2.0**-8
            torch.testing.assert_close(got.double(), truth, rtol=0, atol=tolerance * scale)


X = torch.zeros(2, 3, 6, 6)
TAPS = torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.int(), TAPS), TypeError, "x torch.int32, expected a floating dtype"),
        ((X[0], TAPS), ValueError, "x has 3 dimensions, expected 4"),
        ((X, TAPS.int()), TypeError, "kernel torch.int32, expected a floating dtype"),
        ((X, [1.0]), TypeError, "kernel list, expected a torch.Tensor"),
        ((X, TAPS[:0]), ValueError, r"kernel shape \(0,\), expected at least one tap"),
        ((X, torch.ones(1, 2, 2)), ValueError, "kernel has 3 dimensions, expected 1 to 2"),
        (
            (X, torch.ones(9)),
            ValueError,
            "x is 6 x 6 after up and padding, expected at least the kernel's 9 x 9",
        ),
    ],
)
def test_bad_inputs_of_upfirdn2d_are_named(arguments, error, message):
    with pytest.raises(error, match=f"upfirdn2d: {message}"):
        upfirdn2d(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"up": 0}, "up 0, expected an int >= 1"),
        ({"down": (1, 0)}, r"down \(1, 0\), expected an int >= 1"),
        ({"up": 1.5}, "up 1.5, expected an int >= 1"),
        ({"padding": (1, 2, 3)}, r"padding \(1, 2, 3\), expected an int"),
        ({"padding": 0.5}, "padding 0.5, expected an int"),
        ({"padding": -3}, "x is 0 x 0 after up and padding"),
        ({"gain": float("nan")}, "gain nan, expected a finite number"),
    ],
)
def test_bad_options_of_upfirdn2d_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"upfirdn2d: {message}"):
        upfirdn2d(X, TAPS, **arguments)


W, S = torch.zeros(5, 3, 3, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, W[:, :2], S), {}, ValueError, "weight has 2 input channels, expected 3 as x"),
        ((X, W.double(), S), {}, TypeError, "weight torch.float64, expected torch.float32 as x"),
        ((X, W, S[:1]), {}, ValueError, r"styles shape \(1, 3\), expected \(2, 3\)"),
        ((X, W, S), {"up": 2}, ValueError, "kernel None with up 2 and down 1, expected a FIR filter"),
        ((X, W, S), {"down": 0, "kernel": TAPS}, ValueError, "down 0, expected an int >= 1"),
        ((X, W, S), {"padding": -1}, ValueError, "padding -1, expected an int >= 0"),
        ((X, W, S), {"eps": 0.0}, ValueError, "eps 0.0, expected above 0"),
        ((X, W, S), {"noise": X.double()}, TypeError, "noise torch.float64, expected torch.float32"),
    ],
)
def test_bad_inputs_of_modulated_conv2d_are_named(arguments, options, error, message):
    with pytest.raises(error, match=f"modulated_conv2d: {message}"):
        modulated_conv2d(*arguments, **options)
