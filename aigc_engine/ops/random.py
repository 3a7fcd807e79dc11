"""Counter-based randomness: a function of (seed, stream, element), with the same bits on every backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

# Salmon et al. 2011, table 2 and section 4.3: multipliers and Weyl increments of Philox4x32.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox_words(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random words per counter and key.

    Args:
        counter: four int64 tensors of 32-bit words, least significant first.
        key: two such tensors; all six broadcast together.

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _wide_product(c0, MULTIPLIERS[0])
        high1, low1 = _wide_product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & _MASK, (k1 + KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _wide_product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product, in 16-bit halves of `a` so that int64 never overflows."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def _words(seeds: Tensor, streams: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words of counters (block, stream) under key seed: four (B, blocks) tensors."""
    block = torch.arange(blocks, device=seeds.device)
    seed, stream = seeds[:, None], streams[:, None]
    counter = (block & _MASK, block >> 32, stream & _MASK, stream >> 32 & _MASK)
    return philox_words(counter, (seed & _MASK, seed >> 32 & _MASK))


def _radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 in (0, 1]; ln by Cephes' logf polynomial about 1, 2 ULP."""
    u = word.float() * 2.0**-32 + 2.0**-33
    # Exponent e and mantissa m in [sqrt(1/2), sqrt(2)), from the bits.
    above = u.view(torch.int32) - 0x3F3504F3
    e = (above >> 23).float()
    f = ((above & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    z = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    p = p * f * z
    p = p + e * -2.12194440e-4
    p = p - z * 0.5
    log = f + p + e * 0.693359375
    # In float64 and back, which rounds correctly: torch's float32 sqrt is MKL's, off by one bit for 1 in 140.
    return torch.sqrt((log * -2.0).double()).float()


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi word / 2^32, by quarter turns and Cephes' polynomials on [-pi/4, pi/4)."""
    quarter = ((word + 0x20000000) >> 30) & 3
    left = (word - (quarter << 30) + 0x80000000 & _MASK) - 0x80000000  # as a signed 32-bit word
    x = left.float() * (2.0 * math.pi / 2.0**32)
    z = x * x
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * x + x
    c = z * 2.443315711809948e-5 - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - z * 0.5 + 1.0
    odd = (quarter & 1).bool()
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    cosine = torch.where(((quarter + 1) & 2).bool(), -cosine, cosine)
    sine = torch.where((quarter & 2).bool(), -sine, sine)
    return cosine, sine


def normal_from_words(words: Sequence[Tensor]) -> Tensor:
    """Four standard normals per four words, by Box-Muller on (w0, w1) and (w2, w3).

    Returns:
        float32 of the words' shape with a last axis of 4 added: (r0 cos, r0 sin, r1 cos, r1 sin).
    """
    numbers = []
    for radius_word, angle_word in (words[:2], words[2:]):
        r = _radius(radius_word)
        cosine, sine = _cos_sin(angle_word)
        numbers += [r * cosine, r * sine]
    return torch.stack(numbers, -1)


def normal_rows(seeds: Tensor, streams: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normals (B, *shape) in float32 in plain torch, with a stream per row."""
    count = math.prod(shape)
    rows = normal_from_words(_words(seeds, streams, (count + 3) // 4))
    return rows.flatten(1)[:, :count].reshape(len(seeds), *shape)


def _check_seeds(name: str, seeds: Tensor, stream: int) -> None:
    checks.tensor(name, "seeds", seeds)
    if seeds.dtype != torch.int64:
        raise TypeError(f"{name}: seeds {seeds.dtype}, expected torch.int64; convert them")
    checks.rank(name, "seeds", seeds, 1, 1)
    if not isinstance(stream, int):
        raise TypeError(f"{name}: stream {type(stream).__name__}, expected an int")
    if not 0 <= stream < 2**63:
        raise ValueError(f"{name}: stream {stream}, expected 0 <= stream < 2^63")


def _check_philox_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    _check_seeds("philox_normal", seeds, stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"philox_normal: shape {tuple(shape)}, expected sizes >= 0")
    if dtype not in checks.FLOATS:
        raise TypeError(f"philox_normal: dtype {dtype}, expected torch.float32 or torch.bfloat16")


def _seed_samples(device: str) -> Tensor:
    return torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF], device=device)


def _samples_philox_normal(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    seeds = _seed_samples(device)
    for n in (1, 3, 4, 5, 15, 17, 63, 64, 65, 127, 129, 1000):
        yield Sample(f"length_{n}", (seeds, (n,)), {"device": device}, batch_axis=0)
    yield Sample("digits", (seeds, (1, 28, 28)), {"stream": 7, "device": device}, batch_axis=0)
    yield Sample("far_stream", (seeds, (33,)), {"stream": 2**40 + 3, "device": device}, batch_axis=0)
    yield Sample("bfloat16", (seeds, (3, 37)), {"dtype": torch.bfloat16, "device": device}, batch_axis=0)
    yield Sample("scalar_rows", (seeds, ()), {"device": device}, batch_axis=0)
    yield Sample("no_rows", (seeds[:0], (5,)), {"device": device})
    yield Sample("no_elements", (seeds, (0, 3)), {"device": device})
    yield Sample("sd15_latents", (seeds[:1], (4, 64, 64)), {"device": device}, bench=True)


@op(
    check=_check_philox_normal,
    samples=_samples_philox_normal,
    dtypes=frozenset({torch.int64}),
    facts=lambda seeds, shape, *, device="cpu", **kwargs: {"device": torch.device(device).type},
    cost=lambda seeds, shape, **kwargs: (
        60.0 * len(seeds) * math.prod(shape),
        4.0 * len(seeds) * math.prod(shape),
    ),
    arithmetic=torch.float32,
    exact=True,
)
def philox_normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Standard normals that depend on (seed, stream, element) only, with the same bits on every backend.

    .. math:: w = \text{Philox4x32-10}(\text{key} = s, \text{counter} = (\lfloor i/4 \rfloor, k))
    .. math:: (z_0, z_1) = \sqrt{-2 \ln \tfrac{w_0 + 1/2}{2^{32}}}\,
        (\cos, \sin)\!\left(2\pi \tfrac{w_1}{2^{32}}\right), \quad (z_2, z_3) \text{ from } (w_2, w_3)

    Element i of a row, counted in its contiguous order, is z_{i mod 4} of block i // 4. |z| <= 6.77.

    References:
        J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
        https://doi.org/10.1145/2063384.2063405
        G. Box, M. Muller, "A Note on the Generation of Random Normal Deviates", 1958,
        https://doi.org/10.1214/aoms/1177706645

    Args:
        seeds: s, (B,) int64, any value; rows of equal seeds are equal.
        shape: of one row.
        stream: k in [0, 2^63), an independent sequence per value. Samplers take 0 for the initial noise and
            k + 1 for the noise of evaluation k.
        dtype: float32, or bfloat16 (rounded from float32).
        device: of the result.

    Returns:
        Tensor (B, *shape).

    Raises:
        TypeError: seeds aren't int64, stream isn't an int, or an unsupported dtype.
        ValueError: seeds aren't (B,), a negative size, or stream out of range.
    """
    seeds = seeds.to(device)
    return normal_rows(seeds, torch.full_like(seeds, stream), shape).to(dtype)


def _check_philox_uniform(seeds: Tensor, *, stream: int = 0) -> None:
    _check_seeds("philox_uniform", seeds, stream)


def _samples_philox_uniform(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    seeds = _seed_samples(device)
    for stream in (0, 1, 2**40 + 3):
        yield Sample(f"stream_{stream}", (seeds,), {"stream": stream}, batch_axis=0)
    yield Sample("many", (torch.arange(1000, device=device),), {"stream": 5}, batch_axis=0)
    yield Sample("no_rows", (seeds[:0],))


@op(
    check=_check_philox_uniform,
    samples=_samples_philox_uniform,
    dtypes=frozenset({torch.int64}),
    exact=True,
)
def philox_uniform(seeds: Tensor, *, stream: int = 0) -> Tensor:
    r"""One uniform number in [0, 1) per seed, a function of (seed, stream) only.

    .. math:: u = \lfloor w_0 / 2^8 \rfloor \, 2^{-24}, \quad
        w = \text{Philox4x32-10}(\text{key} = s, \text{counter} = (0, k))

    References:
        J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
        https://doi.org/10.1145/2063384.2063405

    Args:
        seeds: s, (B,) int64.
        stream: k in [0, 2^63); text sampling takes the position of the token.

    Returns:
        float32 tensor (B,) on the seeds' device.

    Raises:
        TypeError: seeds aren't int64 or stream isn't an int.
        ValueError: seeds aren't (B,) or stream is out of range.
    """
    first = _words(seeds, torch.full_like(seeds, stream), 1)[0]
    return (first[:, 0] >> 8).float() * 2.0**-24
