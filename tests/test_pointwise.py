"""What the generated parity tests don't say of pointwise: bad input, accuracy, memory, concatenation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from aigc_engine import _native, native, ops
from aigc_engine.dispatch import use_backend
from aigc_engine.native import pointwise as adapter
from aigc_engine.ops import pointwise
from aigc_engine.ops.pointwise import STEPS
from aigc_engine.testing import same_bits

X = torch.ones(2, 3, 4, 5)
LEVELS = [name for name, _, runs in native.isa_levels() if runs and name != "amx_emulated"]
NHWC = torch.channels_last
ADD = [("add", 0, 1)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


BAD = [
    (([],), {}, ValueError, "pointwise: no tensors, expected at least one after the program"),
    (([], [1.0]), {}, TypeError, "pointwise: tensor 0 list, expected a torch.Tensor"),
    (([], X.int()), {}, TypeError, "pointwise: tensor 0 torch.int32, expected a floating dtype"),
    (
        (ADD, X, torch.ones(4)),
        {},
        ValueError,
        r"pointwise: tensors of shapes .*\(4,\)\], expected shapes",
    ),
    (("silu", X), {}, TypeError, "pointwise: program str, expected a list or tuple of steps"),
    (
        (["silu"], X),
        {},
        TypeError,
        "pointwise: step 0 is 'silu', expected a tuple of a name and",
    ),
    (([()], X), {}, TypeError, r"pointwise: step 0 is \(\), expected a tuple"),
    (([("swish",)], X), {}, ValueError, "pointwise: step 0 is 'swish', expected one of .*'abs'"),
    (([("add",)], X), {}, ValueError, "pointwise: step 0, add, has 0 operands, expected 2, or 1 after"),
    (([("silu", 0, 0)], X), {}, ValueError, "pointwise: step 0, silu, has 2 operands, expected 1, or 0"),
    (
        ([("silu",), ("add", 2)], X),
        {},
        ValueError,
        "step 1, add, has operand 2, expected a value from 0",
    ),
    (([("add", -1)], X), {}, ValueError, "has operand -1, expected a value from 0 to 0"),
    (([("add", True)], X), {}, TypeError, "has operand True, expected the number of a value"),
    (([("add", "x")], X), {}, TypeError, "has operand 'x', expected the number of a value"),
    (([], X), {"out_dtype": torch.int32}, TypeError, "pointwise: out_dtype torch.int32, expected a floating"),
    (([], X), {"memory_format": torch.channels_last_3d}, ValueError, "memory_format torch.channels_last_3d"),
    (([], X[0]), {"memory_format": NHWC}, ValueError, "torch.channels_last of 3 axes, expected 4 axes"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_bad_input(backend: str, args: tuple, kwargs: dict, kind: type[Exception], message: str) -> None:
    with use_backend(backend), pytest.raises(kind, match=message):
        pointwise(*args, **kwargs)


def test_every_step_is_documented_and_known_to_the_kernel() -> None:
    for name, (operands, _) in STEPS.items():
        assert f"{name}" in (pointwise.__doc__ or "")
        adapter.run([(name, *[0] * operands)], torch.empty(3), torch.ones(3))
        with pytest.raises(ValueError, match="pointwise: program, expected up to 24 steps"):
            adapter.run([(name, *[0] * (operands + 1))], torch.empty(3), torch.ones(3))


def test_limits_leave_the_rest_to_the_reference() -> None:
    x = torch.ones(3)
    assert pointwise.explain([("neg",)] * 25, x).runs == "reference"
    assert pointwise.explain([], *[x] * 9).runs == "reference"
    assert pointwise.explain([], x.reshape(*[1] * 8, 3)).runs == "reference"
    assert pointwise.explain([("add", 1)], x, x.double()).runs == "reference"
    assert pointwise.explain([], x, out_dtype=torch.float16).runs == "reference"
    assert torch.equal(pointwise([("neg",)] * 25, x), -x)


def ulps(name: str, x: Tensor) -> float:
    """Largest error in units of the last place of the exact result (of the smallest normal below it)."""
    got, truth = pointwise([(name,)], x), getattr(torch, name)(x.double())
    finite = truth.abs() <= torch.finfo(torch.float32).max
    assert torch.equal(got[~finite].isnan(), truth[~finite].isnan())
    magnitude = truth[finite].abs().clamp(min=2.0**-126)
    unit = torch.exp2(magnitude.log2().floor() - 23)
    return ((got[finite].double() - truth[finite]).abs() / unit).max().item()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos"])
def test_transcendental_steps_are_within_2_ulp(name: str, level: str) -> None:
    every = torch.arange(-(2**31), 2**31, 4001, dtype=torch.int64).to(torch.int32).view(torch.float32)
    quarters = torch.arange(1.0, 40000.0) * (math.pi / 2)
    near = torch.linspace(-110, 95, 300_001)
    with native.force_isa(level):
        for x in (every[every.isfinite()], quarters, near):
            assert ulps(name, x) <= 2.0


def test_exp_and_log_at_their_ends() -> None:
    x = torch.tensor([math.inf, -math.inf, 88.72283, 88.73, -87.4, -103.9, -104.0, -0.0])
    assert torch.allclose(pointwise([("exp",)], x), x.exp(), rtol=3e-7, atol=1.5e-45)
    assert same_bits(pointwise([("exp",)], x).isinf(), x.exp().isinf())
    x = torch.tensor([0.0, -0.0, math.inf, -1.0, -math.inf, math.nan, 1.0, 1e-45, 3e38])
    assert torch.allclose(pointwise([("log",)], x), x.log(), rtol=3e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC])
def test_pieces_written_into_slices_are_a_concatenation(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    pieces = [randn(2, C, 7, 9, seed=C, dtype=dtype).contiguous(memory_format=layout) for C in (3, 16, 33)]
    whole = torch.full((2, 52, 7, 9), math.nan, dtype=dtype).contiguous(memory_format=layout)
    first = 0
    for piece in pieces:
        adapter.run([], whole[:, first : first + piece.shape[1]], piece)
        first += piece.shape[1]
    assert torch.equal(whole, torch.cat(pieces, dim=1))


def test_only_the_slice_is_written() -> None:
    for out in (torch.zeros(7, 50), torch.zeros(50, 7).T):
        x = randn(5, 33)
        adapter.run([("neg",)], out[1:6, 9:42], x)
        assert torch.equal(out[1:6, 9:42], -x)
        out[1:6, 9:42] = 0
        assert not out.any()


def test_output_may_be_an_input() -> None:
    x, y = randn(3, 1001), randn(3, 1001, seed=1)
    expected = (x + y) * x
    adapter.run([("add", 1), ("mul", 0)], x, x, y)
    assert torch.equal(x, expected)
    whole = randn(4, 20, 6)
    expected = whole[:, 10:] + whole[:, :10]
    adapter.run([("add", 1)], whole[:, 10:], whole[:, 10:], whole[:, :10])  # interleaved, not overlapping
    assert torch.equal(whole[:, 10:], expected)


OVERLAPS: list[tuple[str, object]] = [
    ("shifted", lambda x: (x[1:], x[:-1])),
    ("shifted in rows", lambda x: (x[:, 1:], x[:, :-1])),
    ("transposed", lambda x: (x[:6], x[:, :6].T[:, :6].expand(6, 6)[:, :1].expand(6, 12))),
    ("broadcast", lambda x: (x, x[:1])),
    ("other dtype", lambda x: (x.view(torch.bfloat16)[:, :12], x)),
]


@pytest.mark.parametrize(("name", "views"), OVERLAPS, ids=[name for name, _ in OVERLAPS])
def test_overlapping_memory_is_refused(name: str, views) -> None:
    x = randn(12, 12)
    kept = x.clone()
    out, given = views(x)
    with pytest.raises(ValueError, match="pointwise: out overlaps input 0, expected the same view or"):
        adapter.run([("neg",)], out, given)
    assert torch.equal(x, kept)


def test_output_that_shares_memory_with_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="pointwise: out with elements that share memory"):
        adapter.run([], torch.empty(1, 4).expand(3, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match="pointwise: tensor 0 of another shape"):
        adapter.run([], torch.empty(3, 4), torch.ones(3, 5))


def test_memory_formats_of_results() -> None:
    last = X.contiguous(memory_format=NHWC)
    with use_backend("native"):
        assert pointwise([("neg",)], last).is_contiguous(memory_format=NHWC)
        assert pointwise([("neg",)], last, memory_format=torch.contiguous_format).is_contiguous()
        assert pointwise([("neg",)], X, memory_format=NHWC).is_contiguous(memory_format=NHWC)
        assert pointwise(ADD, torch.ones(5), last).is_contiguous()
        assert pointwise([], last[:, 1:]).is_contiguous(memory_format=NHWC)


def test_dtypes_of_results() -> None:
    half, single = torch.ones(3, dtype=torch.bfloat16), torch.ones(3)
    for backend in ("native", "reference", "auto"):
        with use_backend(backend):
            assert pointwise([("add", 1)], half, half).dtype == torch.bfloat16
            assert pointwise([("add", 1)], half, single).dtype == torch.float32
            assert pointwise([], half, single).dtype == torch.float32
            assert pointwise([("add", 1)], half, single, out_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bfloat16_chain_is_rounded_once() -> None:
    x = torch.full((40,), 1.0, dtype=torch.bfloat16)
    small = torch.full((40,), 2.0**-9, dtype=torch.bfloat16)
    program = [("add", 1), ("add", 1), ("sub", 0)]
    assert torch.equal(pointwise(program, x, small), 2 * small)


def random_view(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of this shape, of a random layout, axes of which may be repeated."""
    order = rng.sample(range(len(shape)), len(shape))
    gaps = [rng.choice((0, 0, 0, 1, 2)) for _ in shape]
    x = randn(*(shape[axis] + gaps[axis] for axis in order), seed=rng.randrange(1 << 30), dtype=dtype)
    x = x.permute([order.index(axis) for axis in range(len(shape))])
    x = x[tuple(slice(gap, None) for gap in gaps)]
    repeated = [axis for axis in range(len(shape)) if rng.random() < 0.15]
    for axis in repeated:
        x = x.narrow(axis, 0, min(1, shape[axis]))
    return x if rng.random() < 0.5 else x.expand(shape)


def random_programs(seed: int) -> Iterator[tuple[list, Tensor, list[Tensor]]]:
    rng = random.Random(seed)
    dtypes = (torch.float32, torch.bfloat16)
    while True:
        sizes = (1, 2, 3, 4, 5, 8, 16, 17, 33, 40)
        shape = tuple(rng.choice(sizes) for _ in range(rng.randrange(7)))
        if math.prod(shape) > 40_000:
            continue
        inputs = [random_view(rng, shape, rng.choice(dtypes)) for _ in range(rng.randrange(1, 5))]
        out = random_view(rng, shape, rng.choice(dtypes))
        if out.shape != shape or 0 in [s for s, n in zip(out.stride(), shape, strict=True) if n > 1]:
            continue
        exact = (
            "add",
            "sub",
            "mul",
            "maximum",
            "minimum",
            "neg",
            "abs",
            "relu",
            "mul_add",
            "where",
            "square",
        )
        program = []
        for s in range(rng.randrange(6)):
            name = rng.choice(exact)
            known = len(inputs) + s
            operands = [rng.choice((rng.randrange(known), rng.uniform(-2, 2))) for _ in range(STEPS[name][0])]
            program.append((name, *operands))
        yield program, out, inputs


@pytest.mark.parametrize("level", LEVELS)
def test_random_programs_have_the_bits_of_the_reference(level: str) -> None:
    cases = random_programs(0)
    _native.poison_scratch(True)
    try:
        with native.force_isa(level):
            for _ in range(400):
                program, out, inputs = next(cases)
                expected = pointwise.reference(program, *inputs, out_dtype=out.dtype).expand(out.shape)
                with native.use_threads(2):
                    adapter.run(program, out, *inputs)
                assert same_bits(out, expected), (program, out.shape, out.stride())
    finally:
        _native.poison_scratch(False)


def test_a_gradient_goes_through_the_reference() -> None:
    x = randn(5).requires_grad_()
    ops.pointwise([("square",), ("mul", 3.0)], x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 6 * x)
