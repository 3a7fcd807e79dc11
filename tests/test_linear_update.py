"""What the generated parity tests don't say of linear_update: its arithmetic, its aliasing, its threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aigc_engine import native
from aigc_engine.dispatch import use_backend
from aigc_engine.ops import linear_update, philox_normal
from tests.conftest import ALL_OPS

BACKENDS = ["reference", "native"]
G = torch.Generator()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with use_backend(request.param):
        yield request.param


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=G.manual_seed(seed))


def noise_of(rows: int) -> dict[str, Tensor]:
    return {
        "noise_scale": torch.linspace(0.5, 2.0, rows),
        "seeds": torch.arange(rows) - 1,
        "streams": torch.arange(rows) * 2**31 + 3,
    }


def rounded(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def test_against_python_floats(backend: str) -> None:
    terms, c = [randn(3, 5, seed=j) for j in range(4)], randn(3, 4, seed=9)
    extra = noise_of(3)
    got = linear_update(terms, c, **extra)
    for b in range(3):
        z = philox_normal(extra["seeds"][b : b + 1], (5,), stream=extra["streams"][b].item())[0]
        factors = [*c[b].tolist(), extra["noise_scale"][b].item()]
        for i in range(5):
            total = 0.0
            for factor, value in zip(factors, [*(t[b, i].item() for t in terms), z[i].item()], strict=True):
                # float64 holds the product of two floats exactly, and their sum to far below a float's ulp.
                total = rounded(total + rounded(factor * value))
            assert got[b, i].item() == total


def test_sums_left_to_right(backend: str) -> None:
    terms = [torch.full((1, 40), value) for value in (1e8, 1.0, -1e8, 1.0)]
    assert torch.equal(linear_update(terms, torch.ones(1, 4)), torch.ones(1, 40))


def test_products_are_rounded(backend: str) -> None:
    """x^2 = 1 + 2^-11 + 2^-24 rounds to 1 + 2^-11; a fused multiply-add would keep 2^-24."""
    x = torch.full((1, 40), 1 + 2**-12)
    one = torch.full((1, 40), -(1 + 2**-11))
    assert torch.equal(linear_update([one, x], torch.tensor([[1.0, 1 + 2**-12]])), torch.zeros(1, 40))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("aliased", [0, 1, 2])
def test_out_may_be_a_term(backend: str, aliased: int, noisy: bool) -> None:
    terms, c = [randn(2, 1037, seed=j) for j in range(3)], randn(2, 3, seed=9)
    extra = noise_of(2) if noisy else {}
    expected = linear_update(terms, c, **extra)
    copies = [term.clone() for term in terms]
    assert linear_update(copies, c, out=copies[aliased], **extra) is copies[aliased]
    assert torch.equal(copies[aliased], expected)
    for j in {0, 1, 2} - {aliased}:
        assert torch.equal(copies[j], terms[j])


@pytest.mark.parametrize("cut", ["rows", "elements", "every other"])
def test_strided_out_leaves_its_surroundings(backend: str, cut: str) -> None:
    terms, c = [randn(2, 33)], torch.tensor([[2.0], [3.0]])
    whole = torch.full((4, 70), torch.nan)
    out = {"rows": whole[1:3, :33], "elements": whole[1:3, 5:38], "every other": whole[1:3, 1:67:2]}[cut]
    linear_update(terms, c, out=out)
    assert torch.equal(out, terms[0] * c)
    assert whole.isnan().sum() == whole.numel() - out.numel()


def test_zero_coefficients_hide_what_is_not_finite(backend: str) -> None:
    bad = torch.full((3, 20), torch.nan)
    c = torch.tensor([[1.0, 0.0], [1.0, -0.0], [1.0, 1.0]])
    got = linear_update([torch.ones(3, 20), bad], c)
    assert torch.equal(got[:2], torch.ones(2, 20))
    assert got[2].isnan().all()
    assert linear_update([torch.ones(1, 20)], torch.tensor([[torch.nan]])).isnan().all()


def test_noise_is_philox_normal(backend: str) -> None:
    extra = noise_of(4)
    got = linear_update([randn(4, 3, 50)], torch.zeros(4, 1), **extra)
    for b in range(4):
        z = philox_normal(extra["seeds"][b : b + 1], (3, 50), stream=extra["streams"][b].item())[0]
        assert torch.equal(got[b], extra["noise_scale"][b] * z)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_share_large_rows(dtype: torch.dtype, noisy: bool) -> None:
    """Past the sizes of the parity samples: rows in several blocks, and work enough for several threads."""
    terms, c = [randn(3, 70_001, seed=j).to(dtype) for j in range(2)], randn(3, 2)
    extra = noise_of(3) if noisy else {}
    expected = linear_update.reference(terms, c, **extra)
    for threads in (1, 2, 5):
        with native.use_threads(threads):
            assert torch.equal(linear_update(terms, c, **extra), expected), threads


def test_operands_that_are_slices(backend: str) -> None:
    """Columns of a table, every other row of a batch, expanded rows."""
    table, extra = randn(3, 6), noise_of(6)
    wide, row = randn(6, 40), randn(1, 40, seed=2).expand(3, 40)
    got = linear_update(
        [wide[::2], row], table[:, 1:5:3], **{name: value[::2] for name, value in extra.items()}
    )
    dense = {name: value[::2].clone() for name, value in extra.items()}
    assert torch.equal(got, linear_update([wide[::2].clone(), row.clone()], table[:, [1, 4]], **dense))


def test_is_an_op_with_native_first() -> None:
    assert linear_update in ALL_OPS
    assert linear_update.explain([torch.ones(1, 2)], torch.ones(1, 1)).runs == "native"


X, C, S = torch.ones(2, 3), torch.ones(2, 1), torch.arange(2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: linear_update([], C), ValueError, "terms 0, expected a list of 1 to 8 tensors"),
        (lambda: linear_update([X] * 9, C), ValueError, "terms 9, expected a list of 1 to 8 tensors"),
        (lambda: linear_update(X, C), ValueError, "terms Tensor, expected a list"),
        (lambda: linear_update([1.0], C), TypeError, r"terms\[0\] float, expected a torch.Tensor"),
        (lambda: linear_update([X.half()], C), TypeError, r"terms\[0\] torch.float16, expected float32"),
        (lambda: linear_update([X[0, 0]], C), ValueError, r"terms\[0\] has 0 dimensions"),
        (lambda: linear_update([X, X.bfloat16()], C), TypeError, r"terms\[1\] torch.bfloat16, expected"),
        (
            lambda: linear_update([X, X[:, :2]], C),
            ValueError,
            r"terms\[1\] shape \(2, 2\), expected \(2, 3\)",
        ),
        (lambda: linear_update([X, 1.0], C), TypeError, r"terms\[1\] float, expected a torch.Tensor"),
        (lambda: linear_update([X], C, out=[X]), TypeError, "out list, expected a torch.Tensor"),
        (lambda: linear_update([X], C.double()), TypeError, "coefficients torch.float64, expected"),
        (lambda: linear_update([X], [1.0, 1.0]), TypeError, "coefficients list, expected a tensor"),
        (lambda: linear_update([X], C.T), ValueError, r"coefficients shape \(1, 2\), expected \(2, 1\)"),
        (lambda: linear_update([X], C, noise_scale=C[:, 0]), ValueError, "without seeds and streams"),
        (lambda: linear_update([X], C, seeds=S), ValueError, "seeds or streams without noise_scale"),
        (
            lambda: linear_update([X], C, noise_scale=C[:, 0], seeds=S.int(), streams=S),
            TypeError,
            "seeds torch.int32, expected a tensor of torch.int64",
        ),
        (
            lambda: linear_update([X], C, noise_scale=C[:, 0], seeds=S, streams=S[:1]),
            ValueError,
            r"streams shape \(1,\), expected \(2,\)",
        ),
        (lambda: linear_update([X], C, out=X.bfloat16()), TypeError, "out torch.bfloat16, expected"),
        (lambda: linear_update([X], C, out=X[:1]), ValueError, r"out shape \(1, 3\), expected \(2, 3\)"),
        (lambda: linear_update([X], C.to("meta")), ValueError, "coefficients on meta, expected cpu"),
    ],
)
def test_bad_input(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_shortcut_declines_what_is_not_plain() -> None:
    from aigc_engine import _native

    x, c, noise = randn(2, 6), torch.ones(2, 1), noise_of(2)
    assert torch.equal(_native.linear_update_direct([x], c), x)
    for terms, coefficients, more in (
        ([], c, {}),
        (iter([x]), c, {}),
        ([x.double()], c, {}),
        ([x.requires_grad_(False).clone().requires_grad_()], c, {}),
        ([torch.nn.Parameter(x, requires_grad=False)], c, {}),
        ([randn(6, 2).t()], c, {}),
        ([x, randn(2, 5)], torch.ones(2, 2), {}),
        ([x, x.bfloat16()], torch.ones(2, 2), {}),
        ([x], torch.ones(2, 2), {}),
        ([x], c.double(), {}),
        ([x.to("meta")], c, {}),
        ([x[:0]], c[:0], {}),
        ([x], c, {"out": randn(2, 5)}),
        ([x], c, {"seeds": noise["seeds"]}),
        ([x], c, noise | {"seeds": noise["seeds"].int()}),
        ([x], c, noise | {"streams": None}),
    ):
        assert _native.linear_update_direct(terms, coefficients, **more) is NotImplemented
    for args, more in (
        ((), {}),
        (([x],), {}),
        (([x], c, c), {}),
        (([x], c), {"terms": [x]}),
        (([x], c), {"z": x}),
    ):
        assert _native.linear_update_direct(*args, **more) is NotImplemented


def test_names_of_arguments_may_be_any_equal_strings() -> None:
    x, out = randn(2, 6), torch.empty(2, 6)
    assert linear_update(**{"".join(["ter", "ms"]): [x], "coefficients": torch.ones(2, 1), "out": out}) is out
    assert torch.equal(out, x)


def test_wrong_signature_is_said_by_the_op() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'noise'"):
        linear_update([randn(1, 2)], torch.ones(1, 1), noise=1.0)  # type: ignore[call-arg]


def test_vmap_takes_the_long_way_and_says_so() -> None:
    with pytest.raises(RuntimeError, match="data pointer"):
        torch.vmap(lambda x: linear_update([x], torch.ones(1, 1)))(randn(3, 1, 2))
