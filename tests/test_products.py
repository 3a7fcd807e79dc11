"""What generated tests of linear and the convolutions don't reach: precision, packing, memory, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aigc_engine import _native, accelerate, native, ops
from aigc_engine.dispatch import UnsupportedError, explain, use_backend

TILED = [name for name, _, runs in native.isa_levels() if runs and name.startswith("amx")]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("level", TILED)
def test_high_precision_splits_float32_in_two_terms(level: str) -> None:
    x, w = randn(70, 333), randn(90, 333, seed=1)
    truth = F.linear(x.double(), w.double())
    with native.force_isa(level), use_backend("native"):
        high, medium = (ops.pack_linear(w, precision=p) for p in ("high", "medium"))
        assert (high.product, medium.product) == ("split", "bfloat16")
        assert relative_error(ops.linear(x, high), truth) < 2e-5
        assert 1e-4 < relative_error(ops.linear(x, medium), truth) < 1e-2
        kernel = randn(20, 33, 3, 3, seed=2)
        image = randn(2, 33, 9, 9, seed=3).contiguous(memory_format=torch.channels_last)
        packed = ops.pack_conv2d(kernel, precision="high")
        assert packed.product == "split"
        assert relative_error(ops.conv2d(image, packed), F.conv2d(image.double(), kernel.double())) < 2e-5


@pytest.mark.usefixtures("isa_level")
def test_split_weights_run_on_every_level() -> None:
    x, w = randn(19, 100), randn(33, 100, seed=1)
    with native.force_isa("amx_emulated"):
        packed = ops.pack_linear(w, precision="high")
    with use_backend("native"):
        assert relative_error(ops.linear(x, packed), F.linear(x.double(), w.double())) < 2e-5


def test_split_keeps_the_largest_floats_and_hides_no_infinity() -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, 0.0], [torch.inf, 0.0], [torch.nan, 0.0]])
    with native.force_isa("amx_emulated"), use_backend("native"):
        y = ops.linear(x, ops.pack_linear(torch.tensor([[0.5, 1.0]]), precision="high"))
    assert y[0, 0] == pytest.approx(largest / 2, rel=1e-4)
    assert not torch.isfinite(y[1:, 0]).any()  # an infinity times a weight's low term of zero is NaN


def test_precision_follows_torch() -> None:
    w = randn(8, 8)
    assert ops.pack_linear(w).product == "float32"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with native.force_isa("amx_emulated"):
            assert ops.pack_linear(w).product == "split"
        with native.force_isa("portable"):
            assert ops.pack_linear(w).product == "float32"
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ValueError, match=r"pack_linear: precision 'best', expected one of \['highest'"):
        ops.pack_linear(w, precision="best")


@pytest.mark.usefixtures("isa_level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scratch_holds_nothing_that_counts(dtype: torch.dtype) -> None:
    """Scratch full of NaN: what isn't written isn't read."""
    x, w = randn(37, 70).to(dtype), ops.pack_linear(randn(35, 70, seed=1).to(dtype))
    image = randn(2, 5, 7, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = ops.pack_conv2d(randn(18, 5, 3, 3, seed=2).to(dtype))
    with use_backend("native"):
        expected = ops.linear(x, w), ops.conv2d(image, kernel, padding=1)
        _native.poison_scratch(True)
        try:
            got = ops.linear(x, w), ops.conv2d(image, kernel, padding=1)
        finally:
            _native.poison_scratch(False)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.usefixtures("isa_level")
def test_nothing_is_written_beside_the_result() -> None:
    """The kernel called on the middle of a guarded buffer, with rows and columns around a tile's edge."""
    for rows, columns in ((1, 1), (15, 17), (16, 16), (17, 31), (33, 15)):
        w = ops.pack_linear(randn(columns, 40))
        assert w.data is not None
        x = randn(rows, 40, seed=1)
        guarded = torch.full((rows + 2, columns), 7.0)
        from aigc_engine.native.linear import PRODUCT_CODES, epilogue

        e = epilogue(guarded[1:-1], columns, None, "none")
        code = PRODUCT_CODES[w.product]
        _native.linear(x.data_ptr(), 40, w.data.data_ptr(), rows, 40, code, e, 2)
        assert torch.equal(guarded[0], torch.full((columns,), 7.0))
        assert torch.equal(guarded[-1], torch.full((columns,), 7.0))
        torch.testing.assert_close(guarded[1:-1], F.linear(x, w.source))


@pytest.mark.usefixtures("isa_level")
def test_a_row_has_its_bits_in_every_batch() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, w = randn(200, 300).to(dtype), ops.pack_linear(randn(50, 300, seed=1).to(dtype))
        with use_backend("native"):
            whole = ops.linear(x, w)
            for first, last in ((0, 1), (5, 9), (7, 40), (100, 133)):
                assert torch.equal(ops.linear(x[first:last], w), whole[first:last])


def test_plain_weight_runs_the_reference_and_says_why() -> None:
    x, w = randn(4, 8), randn(6, 8)
    explanation = explain(ops.linear, x, w)
    assert explanation.runs == "reference"
    assert "weight tensor, serves ['packed']" in str(explanation)
    assert explain(ops.linear, x, ops.pack_linear(w)).runs == "native"
    with use_backend("native"), pytest.raises(UnsupportedError, match="weight tensor, serves"):
        ops.linear(x, w)


def test_bare_depthwise_convolutions_are_pytorchs_but_for_many_taps_in_float32() -> None:
    w, x = randn(20, 1, 7, 7), randn(2, 20, 9, 9, seed=1)
    packed = ops.pack_conv2d(w.bfloat16(), groups=20)
    bare = explain(ops.conv2d, x.bfloat16(), packed, groups=20)
    assert bare.runs == "reference"
    assert "depthwise bare bfloat16, serves" in str(bare)
    for options in ({"act": "silu"}, {"channel_bias": randn(2, 20).bfloat16()}):
        assert explain(ops.conv2d, x.bfloat16(), packed, groups=20, **options).runs == "native"
    wide = ops.pack_conv2d(w, groups=20)
    assert explain(ops.conv2d, x, wide, groups=20).runs == "native"
    assert explain(ops.conv2d, x, wide, groups=20, stride=2).runs == "reference"
    small = ops.pack_conv2d(w[:, :, :3, :3].clone(), groups=20)
    assert explain(ops.conv2d, x, small, groups=20).runs == "reference"
    assert explain(ops.conv2d, x, small, groups=20, act="relu").runs == "native"
    assert explain(ops.conv2d, x, wide, groups=20, stride=2, act="silu").runs == "native"


def test_depthwise_weights_computed_for_a_plan_are_kept_for_pytorch() -> None:
    """A plan drops plain weights that its kernels don't read; here PyTorch reads them."""

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(randn(20, 1, 3, 3).bfloat16())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight * 0.5, padding=1, groups=20).exp()

    module, x = Halved().eval(), randn(2, 20, 5, 5, seed=1).bfloat16()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="depthwise bare, few taps"):
        torch.testing.assert_close(accelerate(module)(x), module(x), rtol=0.05, atol=0.05)


def test_changed_weight_is_refused() -> None:
    w = randn(6, 8)
    packed = ops.pack_linear(w)
    w.mul_(2.0)
    with pytest.raises(ValueError, match="linear: weight changed after it was packed; pack it again"):
        ops.linear(randn(4, 8), packed)


def test_odd_halves_of_a_gated_weight_run_the_reference() -> None:
    x, w = randn(4, 8), ops.pack_linear(randn(20, 8))
    explanation = explain(ops.linear, x, w, act="geglu")
    assert explanation.runs == "reference"
    assert "gated_tail 10, serves 0 to 0" in str(explanation)


LINEAR = ops.pack_linear(randn(6, 8))
CONV = ops.pack_conv2d(randn(6, 4, 3, 3))
IMAGE = randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.linear(randn(4, 9), LINEAR), r"linear: x shape \(4, 9\), expected \(\.\.\., 8\)"),
        (lambda: ops.linear(randn(4, 8), CONV), "linear: weight packed for conv2d, expected pack_linear"),
        (lambda: ops.linear(randn(4, 8), LINEAR, randn(5)), r"linear: bias shape \(5,\), expected \(6,\)"),
        (lambda: ops.linear(randn(4, 8), LINEAR, act="swish"), "linear: act 'swish', expected one of"),
        (lambda: ops.linear(randn(4, 8), LINEAR, gate=randn(4, 5)), r"linear: gate shape \(4, 5\), expected"),
        (lambda: ops.linear(randn(4, 8), LINEAR, residual=randn(6)), "linear: residual shape"),
        (
            lambda: ops.pack_linear(randn(2, 3, 4)),
            r"pack_linear: weight shape \(2, 3, 4\), expected \(N, K\)",
        ),
        (lambda: ops.pack_conv2d(randn(6, 4, 3, 3), groups=4), "pack_conv2d: groups 4, expected a divisor"),
        (lambda: ops.conv2d(IMAGE, CONV, groups=2), "conv2d: groups 2, expected 1 as weight was packed for"),
        (lambda: ops.conv2d(randn(2, 5, 5, 5), CONV), "conv2d: x has 5 channels, expected 4"),
        (lambda: ops.conv2d(IMAGE, CONV, stride=0), "conv2d: stride 0, expected an int >= 1 or 2 of them"),
        (lambda: ops.conv2d(IMAGE, CONV, padding=(1, 2, 3)), r"conv2d: padding \(1, 2, 3\), expected an int"),
        (lambda: ops.conv2d(randn(2, 4, 2, 2), CONV), "conv2d: x shape .*, expected room for weight"),
        (lambda: ops.conv2d(IMAGE, CONV, upsample=0), "conv2d: upsample 0, expected an int >= 1"),
        (lambda: ops.conv2d(IMAGE, CONV, concat=randn(2, 1, 4, 4)), "conv2d: concat shape"),
        (lambda: ops.conv2d(IMAGE, CONV, residual=IMAGE), "conv2d: residual shape"),
        (
            lambda: ops.conv_transpose2d(
                IMAGE, ops.pack_conv_transpose2d(randn(4, 6, 4, 4), stride=2), stride=1
            ),
            r"conv_transpose2d: stride 1, expected \(2, 2\) as weight was packed for",
        ),
        (
            lambda: ops.conv_transpose2d(IMAGE, randn(4, 6, 4, 4), stride=2, output_padding=2),
            "conv_transpose2d: output_padding 2, expected less than stride 2",
        ),
    ],
)
def test_errors_name_the_argument(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_types_are_named() -> None:
    with pytest.raises(TypeError, match="linear: weight list, expected a torch.Tensor or what pack_linear"):
        ops.linear(randn(4, 8), [1.0])
    with pytest.raises(TypeError, match="linear: weight torch.float32, expected torch.bfloat16 as x"):
        ops.linear(randn(4, 8).bfloat16(), LINEAR)
    with pytest.raises(TypeError, match="pack_linear: weight torch.float64, expected torch.float32 or"):
        ops.pack_linear(randn(6, 8).double())
