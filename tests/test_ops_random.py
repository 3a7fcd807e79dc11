"""Philox against Random123's known answers, and the normals against their distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aigc_engine.ops import philox_normal, philox_uniform
from aigc_engine.ops.random import normal_from_words, philox_words

N = 1 << 20
# Random123's kat_vectors for philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


def normals(seed: int, *, stream: int = 0, n: int = N) -> Tensor:
    return philox_normal(torch.tensor([seed]), (n,), stream=stream)[0].double()


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def kolmogorov(sorted_cdf: Tensor) -> float:
    """sqrt(n) times the largest distance between an empirical and the true distribution."""
    n = len(sorted_cdf)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max(
        (steps[1:] - sorted_cdf).abs().max().item(), (sorted_cdf - steps[:-1]).abs().max().item()
    )


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert [f"{word.item():08x}" for word in philox_words(words(counter), words(key))] == expected.split()


@pytest.mark.parametrize("function", [philox_uniform, philox_uniform.reference])
def test_uniform_is_the_first_word(function) -> None:
    assert function(torch.tensor([0])).item() == (0x6627E8D5 >> 8) / 2**24
    key = [torch.tensor([0xFFFFFFFE]), torch.tensor([0xFFFFFFFF])]
    counter = [torch.tensor([w]) for w in (0, 0, 5, 2**20)]
    expected = (philox_words(counter, key)[0] >> 8).item() / 2**24
    assert function(torch.tensor([-2]), stream=(2**20 << 32) + 5).item() == expected


def test_normals_are_box_muller_of_the_words() -> None:
    """Against the formula in float64, on the words' boundaries and on random ones."""
    g = torch.Generator().manual_seed(0)
    edges = torch.tensor([0, 1, 2, 255, 256, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    quarters = torch.arange(9).repeat_interleave(3) * 2**29 + torch.tensor([-1, 0, 1]).repeat(9)
    special = torch.cat([edges, quarters.clamp(0, 2**32 - 1)])
    w = torch.cat([torch.cartesian_prod(special, special), torch.randint(2**32, (100_000, 2), generator=g)])
    got = normal_from_words([w[:, 0], w[:, 1], w[:, 0], w[:, 1]])
    u = (w[:, 0].double() + 0.5) / 2**32
    theta = w[:, 1].double() / 2**32 * 2 * math.pi
    r = torch.sqrt(-2 * torch.log(u))
    expected = torch.stack([r * theta.cos(), r * theta.sin()], 1).repeat(1, 2)
    assert torch.isfinite(got).all()
    # u near one is rounded to a multiple of 2^-24, where r <= 2^-11: an absolute error of 2^-15 at most.
    assert (got - expected).abs().max() < 2**-15
    far = w[:, 0] < 2**31
    assert ((got - expected)[far] / r[far, None]).abs().max() < 4e-7


def test_moments() -> None:
    z = normals(7)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        error = (z**power).mean().item() - expected
        assert abs(error) < 4 * math.sqrt(variance / N), f"moment {power}"


def test_distribution() -> None:
    for seed, stream in ((1, 0), (2**40, 0), (1, 2**33)):
        z = normals(seed, stream=stream).sort().values
        assert kolmogorov(torch.special.ndtr(z)) < 1.95, (seed, stream)  # 1.95: one in a thousand
    u = philox_uniform(torch.arange(N), stream=3).double()
    assert u.min() >= 0 and u.max() < 1
    assert kolmogorov(u.sort().values) < 1.95


def test_tails() -> None:
    z = torch.cat([normals(seed, n=4 * N) for seed in range(2)]).abs()
    for bound in (2.0, 3.0, 4.0, 5.0):
        expected = len(z) * math.erfc(bound / math.sqrt(2))
        assert abs((z > bound).sum().item() - expected) < 4 * math.sqrt(expected), bound
    assert 5.0 < z.max() <= 6.77


def test_neighbours_are_independent() -> None:
    """Elements, rows, streams and seeds next to each other, in value and in size."""
    z = normals(11)
    pairs = {
        "next seed": normals(12),
        "high seed bits": normals(11 + 2**32),
        "next stream": normals(11, stream=1),
        "high stream bits": normals(11, stream=2**32),
        "seed and stream swapped": normals(0, stream=11),
    } | {f"shift {shift}": z.roll(shift) for shift in (1, 2, 3, 4, 64)}
    for name, other in pairs.items():
        assert abs(correlation(z, other)) < 4 / math.sqrt(N), name
        assert abs(correlation(z.square(), other.square())) < 4 / math.sqrt(N), name


def test_element_depends_on_seed_stream_and_place_only() -> None:
    long = philox_normal(torch.tensor([5, 6]), (3, 5000), stream=9)
    assert torch.equal(philox_normal(torch.tensor([6]), (37,), stream=9)[0], long[1].flatten()[:37])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(philox_normal(torch.tensor([5, 6]), (3, 5000), stream=9), long)
    assert torch.equal(torch.get_rng_state(), state)
    strided = torch.tensor([5, 0, 6, 0])[::2]
    assert torch.equal(philox_normal(strided, (3, 5000), stream=9), long)


def test_bfloat16_is_rounded_from_float32() -> None:
    wide = philox_normal(torch.tensor([3]), (1000,))
    assert torch.equal(philox_normal(torch.tensor([3]), (1000,), dtype=torch.bfloat16), wide.bfloat16())


SEEDS = torch.arange(3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: philox_normal([1], (3,)), TypeError, "philox_normal: seeds list, expected a torch.Tensor"),
        (lambda: philox_normal(SEEDS.int(), (3,)), TypeError, "seeds torch.int32, expected torch.int64"),
        (lambda: philox_normal(SEEDS[None], (3,)), ValueError, "seeds has 2 dimensions, expected 1"),
        (lambda: philox_normal(SEEDS, (3, -1)), ValueError, r"shape \(3, -1\), expected sizes >= 0"),
        (lambda: philox_normal(SEEDS, (3,), stream=-1), ValueError, "stream -1, expected 0 <= stream < 2"),
        (lambda: philox_normal(SEEDS, (3,), stream=2**63), ValueError, "stream 9223372036854775808"),
        (lambda: philox_normal(SEEDS, (3,), stream=1.5), TypeError, "stream float, expected an int"),
        (lambda: philox_normal(SEEDS, (3,), dtype=torch.float16), TypeError, "dtype torch.float16, expected"),
        (lambda: philox_uniform(SEEDS.float()), TypeError, "philox_uniform: seeds torch.float32"),
        (lambda: philox_uniform(SEEDS, stream=-1), ValueError, "philox_uniform: stream -1"),
    ],
)
def test_bad_input(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
