"""What the generated parity tests don't say of norms and gated units: bad input, accuracy, layout, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine import _native, native
from aigc_engine.dispatch import use_backend
from aigc_engine.ops import geglu, group_norm, group_norm_silu, layer_norm, rms_norm, swiglu
from aigc_engine.testing import same_bits

X = torch.ones(2, 6, 4)
ROWS = torch.ones(2, 6)
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
LEVELS = [name for name, _, runs in native.isa_levels() if runs]
NAN = math.nan


@pytest.fixture(autouse=True)
def native_backend():
    with use_backend("native"):
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grouped(x: Tensor, groups: int) -> Tensor:
    """x (B, C, ...) in float64 with each group's values centred and scaled, by the definition."""
    flat = x.double().reshape(x.shape[0], groups, -1)
    mean = flat.mean(-1, keepdim=True)
    deviation = ((flat - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return ((flat - mean) / deviation).reshape(x.shape)


BAD = [
    (group_norm, ([1.0], 2), {}, TypeError, "group_norm: x list, expected a torch.Tensor"),
    (group_norm, (X.int(), 2), {}, TypeError, "group_norm: x torch.int32, expected a floating dtype"),
    (group_norm, (torch.ones(4), 2), {}, ValueError, "group_norm: x has 1 dimensions, expected at least 2"),
    (group_norm, (X, 4), {}, ValueError, "group_norm: num_groups 4, expected a divisor of x's 6 channels"),
    (group_norm, (X, 0), {}, ValueError, "group_norm: num_groups 0, expected a divisor of x's 6 channels"),
    (group_norm, (X, 2.0), {}, TypeError, "group_norm: num_groups 2.0, expected an int"),
    (group_norm, (X, True), {}, TypeError, "group_norm: num_groups True, expected an int"),
    (group_norm, (torch.ones(2, 6), 6), {}, ValueError, "expected more than one value in each group"),
    (group_norm, (X, 2, torch.ones(5)), {}, ValueError, r"group_norm: weight shape \(5,\), expected \(6,\)"),
    (group_norm, (X, 2, None, torch.ones(6, 1)), {}, ValueError, r"group_norm: bias shape \(6, 1\)"),
    (group_norm, (X, 2, torch.ones(6).bfloat16()), {}, TypeError, "group_norm: weight torch.bfloat16"),
    (group_norm, (X, 2, 1.0), {}, TypeError, "group_norm: weight float, expected a torch.Tensor"),
    (group_norm, (X, 2), {"eps": -1.0}, ValueError, "group_norm: eps -1.0, expected a finite number >= 0"),
    (group_norm_silu, (X, 4), {}, ValueError, "group_norm_silu: num_groups 4"),
    (group_norm_silu, (X, 2), {"eps": NAN}, ValueError, "group_norm_silu: eps nan"),
    (layer_norm, (torch.ones(2, 0),), {}, ValueError, "layer_norm: x shape .* at least one value"),
    (layer_norm, (torch.tensor(1.0),), {}, ValueError, "layer_norm: x has 0 dimensions"),
    (layer_norm, (ROWS, torch.ones(5)), {}, ValueError, r"layer_norm: weight shape \(5,\), expected \(6,\)"),
    (layer_norm, (ROWS, None, torch.ones(6).double()), {}, TypeError, "layer_norm: bias torch.float64"),
    (layer_norm, (ROWS,), {"eps": math.inf}, ValueError, "layer_norm: eps inf"),
    (layer_norm, (ROWS,), {"scale": torch.ones(6)}, ValueError, r"scale shape \(6,\), expected \(2, 6\)"),
    (layer_norm, (X,), {"shift": torch.ones(2, 6, 4)}, ValueError, r"expected \(2, 4\) or \(2, 1, 4\)"),
    (layer_norm, (ROWS,), {"shift": ROWS.double()}, TypeError, "layer_norm: shift torch.float64"),
    (layer_norm, (torch.ones(6),), {"scale": ROWS}, ValueError, "layer_norm: x has 1 dimensions"),
    (
        layer_norm,
        (ROWS,),
        {"dtype": torch.int32},
        TypeError,
        "layer_norm: dtype torch.int32, expected a floating",
    ),
    (
        group_norm,
        (X, 2),
        {"dtype": "bfloat16"},
        TypeError,
        "group_norm: dtype 'bfloat16', expected a torch.dtype",
    ),
    (rms_norm, (ROWS.long(),), {}, TypeError, "rms_norm: x torch.int64, expected a floating dtype"),
    (rms_norm, (ROWS, torch.ones(2, 6)), {}, ValueError, r"rms_norm: weight shape \(2, 6\), expected \(6,\)"),
    (geglu, (torch.ones(2, 5),), {}, ValueError, r"geglu: x shape \(2, 5\), expected an even last axis"),
    (geglu, (torch.ones(2, 0),), {}, ValueError, "geglu: x shape"),
    (swiglu, (torch.ones(2, 6).int(),), {}, TypeError, "swiglu: x torch.int32"),
]


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "error", "message"), BAD, ids=[f"{row[0].name}-{i}" for i, row in enumerate(BAD)]
)
def test_bad_input(op: Callable, args: tuple, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        op(*args, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (5, 5), (21, 3), (34, 17), (37, 1), (80, 5), (130, 65), (131, 131)]
)
def test_any_division_into_groups(channels: int, groups: int, layout: torch.memory_format) -> None:
    x = (randn(2, channels, 19, 15) * torch.linspace(0.1, 9, channels)[:, None, None] + 2).contiguous(
        memory_format=layout
    )
    weight, bias = randn(channels, seed=1), randn(channels, seed=2)
    truth = grouped(x, groups) * weight.double()[:, None, None] + bias.double()[:, None, None]
    # 6 eps: a rounding of x - mean, of the product and of the sum, and the parameters' own.
    bound = 6 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (group_norm(x, groups, weight, bias) - truth).abs().max() <= bound
    assert (group_norm_silu(x, groups, weight, bias) - F.silu(truth)).abs().max() <= bound


@pytest.mark.parametrize("mean", [1e4, -3e5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_large_mean_costs_no_accuracy(layout: torch.memory_format, mean: float) -> None:
    """float32 holds these x to 1e-3 or 3e-2; what it holds is normalised to within 1e-5 all the same."""
    x = (randn(2, 12, 31, 33) + mean).contiguous(memory_format=layout)
    assert (group_norm(x, 3) - grouped(x, 3)).abs().max() < 1e-5
    rows = x.flatten(0, 2)
    assert (layer_norm(rows) - grouped(rows, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_outlier_first_costs_no_accuracy(layout: torch.memory_format) -> None:
    """The shift of the sums must not be one element, which may be nothing like the others."""
    x = randn(2, 32, 40, 40)
    x[:, :, 0, 0] = 3e3
    x = x.contiguous(memory_format=layout)
    truth = grouped(x, 2)
    assert (group_norm(x, 2) - truth).abs().max() <= 4e-7 * truth.abs().max()
    rows = randn(3, 5000)
    rows[:, 0] = 3e3
    truth = grouped(rows, 1)
    assert (layer_norm(rows) - truth).abs().max() <= 4e-7 * truth.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, -7e8])
def test_a_constant_gives_the_bias(value: float, layout: torch.memory_format) -> None:
    weight, bias = randn(24, seed=1), randn(24, seed=2)
    x = torch.full((2, 24, 17, 23), value).contiguous(memory_format=layout)
    expected = bias[:, None, None].expand(x.shape)
    assert torch.equal(group_norm(x, 4, weight, bias), expected)
    rows = torch.full((3, 24), value)
    assert torch.equal(layer_norm(rows, weight, bias), bias.expand(3, 24))


@pytest.mark.parametrize("bad", [NAN, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_bad_value_stays_in_its_group(layout: torch.memory_format, dtype: torch.dtype, bad: float) -> None:
    clean = randn(3, 40, 9, 11).to(dtype).contiguous(memory_format=layout)
    x = clean.clone(memory_format=torch.preserve_format)
    x[1, 17, 8, 10] = bad  # group 3 of eight: channels 15 to 19
    for op in (group_norm, group_norm_silu):
        got, expected = op(x, 8), op(clean, 8)
        assert got[1, 15:20].isnan().all()
        got[1, 15:20] = expected[1, 15:20]
        assert torch.equal(got, expected)


@pytest.mark.parametrize("op", [layer_norm, rms_norm, geglu, swiglu], ids=lambda op: op.name)
def test_a_nan_stays_in_its_row(op: Callable) -> None:
    x = randn(5, 70)
    clean = op(x)
    x[2, 69] = NAN
    got = op(x)
    assert got[2].isnan().any()
    assert torch.equal(got[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("op", [group_norm, group_norm_silu, layer_norm, rms_norm], ids=lambda op: op.name)
def test_a_bfloat16_result_is_the_float32_one_rounded(op: Callable) -> None:
    groups = (2,) if op in (group_norm, group_norm_silu) else ()
    for shape in ((3, 6, 5, 9), (2, 40, 8, 3), (2, 64, 4, 32)):
        for layout in LAYOUTS:
            x = randn(*shape).contiguous(memory_format=layout)
            got, wide = op(x, *groups, dtype=torch.bfloat16), op(x, *groups)
            assert got.dtype == torch.bfloat16 and got.stride() == wide.stride()
            # 0.5 eps of a rounding, and silu's cheaper polynomial where the result is bfloat16.
            bound = 0.55 * torch.finfo(torch.bfloat16).eps
            assert ((got.float() - wide).abs() <= bound * wide.abs() + 1e-6).all()


def test_other_results_run_on_the_reference() -> None:
    with use_backend("auto"):
        assert layer_norm.explain(ROWS.bfloat16(), dtype=torch.float32).runs == "reference"
        assert rms_norm.explain(ROWS, dtype=torch.bfloat16).runs == "native"
        assert group_norm(X, 2, dtype=torch.float16).dtype == torch.float16


def test_the_smallest_results_are_the_same_on_every_level() -> None:
    """Smaller than the smallest normal number: zeros, also where no instruction makes them so."""
    x = torch.tensor([[1.0, -1.0]]).repeat(20, 40).bfloat16()
    weight = torch.logspace(-39, -36, 80, base=10).bfloat16()
    results = []
    for level in LEVELS:
        with native.force_isa(level):
            results.append(rms_norm(x, weight))
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert ((results[0] == 0) | (results[0].abs() >= torch.finfo(torch.float32).tiny)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_far_out(dtype: torch.dtype) -> None:
    """To both sides of where e^x over- or underflows: v above, zero below, the same bits on every level."""
    x = torch.tensor([-1.0, 1.0]).repeat(40).reshape(1, 2, 40).to(dtype)
    results = []
    for level in LEVELS:
        with native.force_isa(level):
            results.append(
                torch.cat([group_norm_silu(x, 1, torch.full((2,), w).to(dtype)) for w in (20, 90, 3e3, 1e30)])
            )
    for other in results[1:]:
        assert same_bits(results[0], other)
    v = torch.cat([group_norm(x, 1, torch.full((2,), w).to(dtype)) for w in (20, 90, 3e3, 1e30)]).double()
    truth = torch.where(v > 0, v, v * v.exp())
    assert ((results[0].double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + 5e-8).all()


@pytest.mark.parametrize("op", [group_norm, group_norm_silu], ids=lambda op: op.name)
def test_keeps_the_reference_layout(op: Callable) -> None:
    last = torch.channels_last
    for x in (
        randn(2, 8, 6, 7),
        randn(2, 8, 6, 7).contiguous(memory_format=last),
        randn(1, 8, 6, 7).contiguous(memory_format=last),
        randn(2, 8, 6, 7).contiguous(memory_format=last)[:, :, ::2],
        randn(2, 16, 6, 7).contiguous(memory_format=last)[:, ::2],
        randn(2, 8, 6, 9)[..., 1:8],
        randn(2, 8, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d),
        randn(2, 10, 8).transpose(1, 2),
        randn(7, 6, 8, 2).permute(3, 2, 1, 0),
        randn(2, 8, 1, 1).expand(2, 8, 4, 4),
        randn(1, 8, 5, 1).expand(3, 8, 5, 6),
    ):
        got, expected = op(x, 2), op.reference(x, 2)
        assert got.stride() == expected.stride(), (x.shape, x.stride())
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8, 5, 5), (3, 8, 0, 5), (0, 8)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    for op in (group_norm, group_norm_silu):
        assert op(x, 4, torch.ones(8), torch.ones(8)).shape == shape
    if shape[-1]:
        assert layer_norm(x).shape == rms_norm(x).shape == shape


class Guarded:
    """A buffer with known values around it, so that a kernel that writes next to it is seen."""

    MARGIN = 64

    def __init__(self, values: Tensor) -> None:
        flat = values.flatten()
        self.whole = torch.full((flat.numel() + 2 * self.MARGIN,), -77.0, dtype=flat.dtype)
        self.inside = self.whole[self.MARGIN : -self.MARGIN]
        self.inside.copy_(flat)

    def address(self) -> int:
        return self.inside.data_ptr()

    def is_whole(self) -> bool:
        edges = torch.cat([self.whole[: self.MARGIN], self.whole[-self.MARGIN :]])
        return bool((edges == -77.0).all())


def surrounded_by_nan(values: Tensor) -> tuple[Tensor, int]:
    """An input whose neighbours would show in any sum that took them in; returns what keeps it alive, too."""
    guard = Guarded(values)
    guard.whole[: Guarded.MARGIN] = NAN
    guard.whole[-Guarded.MARGIN :] = NAN
    return guard.whole, guard.address()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [2, 30, 32, 34, 66, 128, 142])
def test_group_norm_writes_its_output_and_no_more(channels: int, dtype: torch.dtype, level: str) -> None:
    code = native.DTYPE_CODES[dtype]
    for channels_last, pixels in ((True, 7), (True, 300), (False, 7), (False, 4500)):
        x = randn(2, pixels, channels).to(dtype) if channels_last else randn(2, channels, pixels).to(dtype)
        layout = (2, channels, pixels, 2, channels_last)
        out = Guarded(torch.full((x.numel(),), NAN, dtype=dtype))
        size = _native.group_norm_workspace(*layout)
        workspace = Guarded(torch.full((size,), NAN))
        alive, address = surrounded_by_nan(x)
        with native.force_isa(level):
            _native.group_norm(
                address, 0, 0, out.address(), workspace.address(), *layout, True, code, code, 1e-5, 2
            )
        assert alive is not None and out.is_whole() and workspace.is_whole()
        image = x[:, :, None].permute(0, 3, 1, 2) if channels_last else x[..., None]
        expected = group_norm_silu(image, 2)[..., 0]
        assert torch.equal(out.inside.reshape(x.shape), expected.mT if channels_last else expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_written_and_no_more(dtype: torch.dtype, level: str) -> None:
    code = native.DTYPE_CODES[dtype]
    for width in (1, 2, 31, 32, 33, 65, 8193):
        x = randn(3, 2 * width).to(dtype)
        alive, address = surrounded_by_nan(x)
        calls = {
            "layer_norm": (2 * width, layer_norm, (0, 0), (3, 2 * width, code, code, 1e-5, 2, ())),
            "rms_norm": (2 * width, rms_norm, (0, 0), (3, 2 * width, code, code, 1e-6, 2, ())),
            "glu": (width, swiglu, (), (3, width, code, 3, True, 2)),
        }
        for name, (columns, op, vectors, sizes) in calls.items():
            out = Guarded(torch.full((3 * columns,), NAN, dtype=dtype))
            with native.force_isa(level):
                getattr(_native, name)(address, *vectors, out.address(), *sizes)
            assert alive is not None and out.is_whole(), name
            assert torch.equal(out.inside.reshape(3, columns), op(x)), name


def test_gated_units_take_the_halves_in_order() -> None:
    first, second = torch.full((1, 3), 2.0), torch.full((1, 3), -0.5)
    x = torch.cat([first, second], dim=-1)
    assert torch.allclose(geglu(x), first * F.gelu(second))
    assert torch.allclose(swiglu(x), F.silu(first) * second)


def test_gelu_of_any_size() -> None:
    """erf's rational function must not leave [-1, 1], which gelu would multiply by x."""
    gate = torch.tensor([-1e30, -1e4, -30.0, -6.0, 0.0, 6.0, 30.0, 1e4, 1e30])
    got = geglu(torch.cat([torch.ones_like(gate), gate]))
    assert torch.allclose(got, gate.clamp(min=0), rtol=2e-7, atol=2e-6)
    assert (got[:3] == 0).all()
