"""Seeds, truncation and spherical interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_engine import latents
from aigc_engine.latents import slerp


def vector(seed: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


GRID = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)


def angles(path: torch.Tensor) -> torch.Tensor:
    steps = unit(path)
    a, b = steps[:-1], steps[1:]
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(1e-3, 1e3))
def test_slerp_keeps_its_ends_turns_evenly_and_changes_length_linearly(seed, dim, stretch):
    a, b = vector(seed, dim), stretch * vector(seed + 1, dim)
    path = slerp(a, b, GRID)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    turns = angles(path)
    total = torch.arccos((unit(a) @ unit(b)).clamp(-1, 1))
    torch.testing.assert_close(turns, (total / 8).expand(8), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(path.norm(dim=1), torch.lerp(a.norm(), b.norm(), GRID), rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_slerp_backwards_is_slerp_of_the_ends_exchanged(seed, dim):
    a, b = vector(seed, dim), vector(seed + 1, dim)
    torch.testing.assert_close(slerp(a, b, GRID), slerp(b, a, GRID).flip(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gap", [0.0, 1e-16, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_of_nearly_parallel_and_nearly_opposite_vectors(gap, sign):
    a = unit(vector(0))
    side = unit(vector(1) - (vector(1) @ a) * a)
    b = sign * (math.cos(gap) * a + math.sin(gap) * side)
    path = slerp(a, b, GRID)
    assert torch.isfinite(path).all()
    torch.testing.assert_close(path.norm(dim=1), torch.ones(9, dtype=torch.float64), rtol=1e-12, atol=0)
    total = gap if sign > 0 else math.pi - gap
    torch.testing.assert_close(
        angles(path), torch.full((8,), total / 8, dtype=torch.float64), rtol=1e-6, atol=2e-12
    )


@pytest.mark.parametrize("axis", range(3))
def test_slerp_between_opposite_axes_goes_round_and_not_through_zero(axis):
    a = torch.eye(3)[axis]
    middle = slerp(a, -a, torch.tensor([0.5]))[0]
    assert middle.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert middle @ a == pytest.approx(0.0, abs=1e-6)


def test_slerp_with_a_zero_vector_is_a_straight_line():
    b = vector(3)
    torch.testing.assert_close(slerp(torch.zeros_like(b), b, GRID), GRID[:, None] * b)
    torch.testing.assert_close(slerp(b, torch.zeros_like(b), GRID), (1 - GRID[:, None]) * b)


def test_slerp_of_float32_rounds_once():
    a, b = vector(4).float(), vector(5).float()
    got = slerp(a, b, GRID)
    assert got.dtype == torch.float32
    assert torch.equal(got, slerp(a.double(), b.double(), GRID).float())


def test_seed_rows_count_up_from_an_int_and_copy_a_sequence():
    assert latents.seed_rows("f", 3, 5).tolist() == [5, 6, 7]
    assert latents.seed_rows("f", None, 5).tolist() == [5]
    assert latents.seed_rows("f", None, (9, -4, 2**63 - 1)).tolist() == [9, -4, 2**63 - 1]
    assert latents.seed_rows("f", 2, torch.tensor([3, 1])).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("n", "seed", "error", "message"),
    [
        (0, 0, ValueError, r"f: n 0, expected at least 1"),
        (-3, 0, ValueError, r"f: n -3, expected at least 1"),
        (1.0, 0, TypeError, r"f: n 1.0, expected an int"),
        (True, 0, TypeError, r"f: n True, expected an int"),
        (1, 0.5, TypeError, r"f: seed 0.5, expected an int"),
        (1, "7", TypeError, r"f: seed '7', expected an int"),
        (None, [1, 2.5], TypeError, r"f: seed\[1\] 2.5, expected an int"),
        (None, [], ValueError, r"f: seed is empty"),
        (3, [1, 2], ValueError, r"f: seed has 2 entries, expected n = 3"),
        (2, 2**63 - 1, ValueError, r"f: seed .* expected \[-2\^63, 2\^63\)"),
        (1, -(2**63) - 1, ValueError, r"f: seed .* expected \[-2\^63, 2\^63\)"),
    ],
)
def test_bad_seeds_are_named(n, seed, error, message):
    with pytest.raises(error, match=message):
        latents.seed_rows("f", n, seed)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_truncation_values_are_named(bad):
    with pytest.raises(ValueError, match=r"f: truncation .* expected finite and above 0"):
        latents.checked_truncation("f", bad)


@pytest.mark.parametrize("bad", ["1", None, True])
def test_bad_truncation_types_are_named(bad):
    with pytest.raises(TypeError, match=r"f: truncation .* expected a float"):
        latents.checked_truncation("f", bad)


def test_draw_scales_the_normals_of_its_seeds():
    seeds = torch.tensor([3, 4])
    z = latents.draw("f", seeds, 8)
    assert torch.equal(latents.draw("f", seeds, 8, 0.5), 0.5 * z)
    assert torch.equal(latents.draw("f", seeds[1:], 8), z[1:])
