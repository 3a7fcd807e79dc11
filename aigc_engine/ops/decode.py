"""Choosing the next token of an autoregressive model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

# Weights are counted in units of 2^-36 of the largest, as integers: their sums are exact in any order (for up
# to 2^26 tokens), so a scan, a tree and a histogram agree to the bit, and what is rounded off is below 2e-11.
WEIGHT_SCALE = 2.0**36

BAD_LOGITS = (
    "NaN, +inf or nothing above -inf, expected a finite largest logit; look at what the model returned"
)
BAD_PREVIOUS = (
    "a token outside the vocabulary, expected tokens in [0, V); pass `lengths` where rows are padded"
)


def _check_setting(name: str, value: float | Tensor, rows: int, low: float, high: float, wanted: str) -> None:
    if isinstance(value, Tensor):
        checks.shape("sample_token", name, value, (rows,))
        wrong = value[~((value >= low) & (value <= high))]
        if wrong.numel():
            raise ValueError(f"sample_token: {name} {wrong[0].item()}, expected {wanted}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"sample_token: {name} {type(value).__name__}, expected a number or a tensor (B,)")
    elif not low <= value <= high:
        raise ValueError(f"sample_token: {name} {value}, expected {wanted}")


def _check_sample_token(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    repetition_penalty: float | Tensor = 1.0,
    previous: Tensor | None = None,
    lengths: Tensor | None = None,
) -> None:
    checks.floating("sample_token", "logits", logits)
    checks.rank("sample_token", "logits", logits, 2, 2)
    rows, vocabulary = logits.shape
    if vocabulary == 0:
        raise ValueError("sample_token: logits (B, 0), expected at least one token")
    checks.tensor("sample_token", "uniform", uniform)
    checks.shape("sample_token", "uniform", uniform, (rows,))
    if uniform.dtype != torch.float32:
        raise TypeError(f"sample_token: uniform {uniform.dtype}, expected torch.float32; convert it")
    largest = torch.finfo(torch.float32).max
    for name, value, low, high, wanted in (
        ("temperature", temperature, 0.0, largest, "a finite number >= 0"),
        ("top_k", top_k, 0, 2**62, "a whole number >= 0 (0: all)"),
        ("top_p", top_p, math.ulp(0.0), 1.0, "a number in (0, 1]"),
        ("min_p", min_p, 0.0, 1.0, "a number in [0, 1]"),
        ("repetition_penalty", repetition_penalty, math.ulp(0.0), largest, "a finite number > 0"),
    ):
        _check_setting(name, value, rows, low, high, wanted)
    whole = not top_k.is_floating_point() if isinstance(top_k, Tensor) else isinstance(top_k, int)
    if not whole:
        raise TypeError(
            "sample_token: top_k is not a whole number, expected an int or an integer tensor (B,)"
        )
    for name, tensor, ndim in (("previous", previous, 2), ("lengths", lengths, 1)):
        if tensor is None:
            continue
        checks.tensor("sample_token", name, tensor)
        if tensor.dtype != torch.int64:
            raise TypeError(f"sample_token: {name} {tensor.dtype}, expected torch.int64; convert it")
        checks.rank("sample_token", name, tensor, ndim, ndim)
        if len(tensor) != rows:
            raise ValueError(f"sample_token: {name} has {len(tensor)} rows, expected {rows} as logits")
    if lengths is not None and previous is None:
        raise ValueError("sample_token: lengths without previous, expected both; pass the previous tokens")


def _samples_sample_token(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def case(name: str, rows: int, vocabulary: int, *, bench: bool = False, **kwargs: object) -> Sample:
        logits = (torch.randn(rows, vocabulary, generator=g) * 3).to(device, dtype)
        uniform = torch.rand(rows, generator=g).to(device)
        return Sample(name, (logits, uniform), kwargs, exact=True, bench=bench, batch_axis=0)

    for vocabulary in (1, 15, 16, 17, 31, 33, 63, 65, 1000):
        yield case(f"vocabulary_{vocabulary}", 5, vocabulary)
        yield case(f"all_{vocabulary}", 5, vocabulary, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02)
    yield case("greedy", 9, 50, temperature=0.0)
    yield case("sharp", 9, 50, temperature=1e-30)
    for p in (1e-6, 0.1, 0.5, 0.999, 1 - 2**-24):
        yield case(f"top_p_{p}", 33, 257, top_p=p)
    for k in (1, 2, 50, 257, 10**6):
        yield case(f"top_k_{k}", 33, 257, top_k=k)
    previous = torch.randint(0, 40, (7, 19), generator=g).to(device)
    lengths = torch.tensor([0, 1, 5, 19, 18, 3, 7], device=device)
    yield case("penalty", 7, 40, repetition_penalty=1.5, previous=previous, lengths=lengths)
    yield case("reward", 7, 40, repetition_penalty=0.7, previous=previous, temperature=0.0)
    rows = {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 0.0, 0.1], device=device),
        "top_k": torch.tensor([0, 1, 2, 3, 40, 41, 7], device=device),
        "top_p": torch.tensor([1.0, 0.9, 0.8, 0.5, 0.1, 0.01, 1.0], device=device),
        "min_p": torch.tensor([0.0, 0.1, 0.0, 0.2, 0.0, 1.0, 0.01], device=device),
    }
    yield case("by_row", 7, 40, **rows)
    ties = torch.randint(0, 4, (32, 100), generator=g).to(device, dtype)
    for name, kwargs in (("ties_top_k", {"top_k": 7}), ("ties_top_p", {"top_p": 0.6})):
        yield Sample(name, (ties, torch.rand(32, generator=g).to(device)), kwargs, exact=True, batch_axis=0)
    masked = case("masked", 6, 70, top_k=50, top_p=0.95)
    masked.args[0][:, ::3] = -math.inf
    yield masked
    strided = case("strided", 6, 70).args[0][:, 1::2]
    yield Sample("strided", (strided, torch.rand(6, generator=g).to(device)), {"top_p": 0.9}, exact=True)
    yield case("gpt2_batch_8", 8, 50257, bench=True, temperature=0.8, top_k=50, top_p=0.95)


@op(
    check=_check_sample_token,
    samples=_samples_sample_token,
    dtypes=checks.FLOATS,
    facts=lambda logits, *args, **kwargs: {},
    cost=lambda logits, *args, **kwargs: (
        20.0 * logits.numel(),
        float(logits.numel() * logits.element_size()),
    ),
    exact=True,
)
def sample_token(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    repetition_penalty: float | Tensor = 1.0,
    previous: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Draw a token from softmax(logits / temperature), cut by top-k, top-p and min-p, in this order:

    1. repetition penalty r: l <- l / r where l >= 0, l r where l < 0, for the tokens in `previous`;
    2. temperature T: weights w_v = exp((l_v - max l) / T); T = 0 returns the largest logit's lowest index;
    3. top-k: keep l_v >= the k-th largest (ties with it stay);
    4. top-p: of the rest, by falling weight (ties: lower index first), keep those before which less than
       p of the mass lies, so at least one;
    5. min-p: keep w_v >= p of the largest weight;
    6. inverse CDF: the lowest v with w_0 + ... + w_v > uniform * (sum of w).

    Weights are rounded down to multiples of 2^-36, so sums are exact: every backend, batch and thread count
    draws the same token.

    References:
        Fan et al., "Hierarchical Neural Story Generation", 2018 (top-k), https://arxiv.org/abs/1805.04833
        Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019 (top-p),
        https://arxiv.org/abs/1904.09751
        Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024, https://arxiv.org/abs/2407.01082
        Keskar et al., "CTRL", 2019 (repetition penalty), https://arxiv.org/abs/1909.05858

    Args:
        logits: (B, V), float32 or bfloat16; -inf bars a token.
        uniform: u (B,), float32, in [0, 1): `philox_uniform` gives it from seeds.
        temperature, top_k, top_p, min_p, repetition_penalty: a number, or a tensor (B,) with one per row;
            T >= 0; k >= 0, 0 keeps all; top-p in (0, 1]; min-p in [0, 1]; r > 0, 1 changes nothing.
        previous: (B, L), int64 in [0, V): tokens that the penalty is for; lengths: (B,), int64, how many of
            each row count (None: all).
    Returns:
        Tokens (B,), int64.
    Raises:
        ValueError: a shape or number outside these bounds, a row of logits with NaN, +inf or only -inf.
        TypeError: a dtype other than these.
    """
    x = logits.float()
    if previous is not None:
        x = _penalised(x, previous, lengths, _column(repetition_penalty, x))
    largest = x.amax(dim=1, keepdim=True)
    wrong = ~largest.isfinite().squeeze(1)
    if wrong.any():
        raise ValueError(f"sample_token: logits row {int(wrong.nonzero()[0])} has {BAD_LOGITS}")
    t = _column(temperature, x)
    weights = _exp((x - largest) / torch.where(t > 0, t, 1.0))
    weights = torch.where(x >= _kth_largest(x, top_k), weights, 0.0)
    weights = _nucleus(weights, _column(top_p, x).double())
    weights = torch.where(weights >= _column(min_p, x), weights, 0.0)
    mass = (weights * WEIGHT_SCALE).long().cumsum(dim=1)
    target = uniform[:, None].double() * mass[:, -1:].double()
    drawn = (mass.double() > target).int().argmax(dim=1)
    return torch.where(t.squeeze(1) > 0, drawn, (x == largest).int().argmax(dim=1))


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32, device=like.device).expand(len(like))[:, None]


def _penalised(x: Tensor, previous: Tensor, lengths: Tensor | None, penalty: Tensor) -> Tensor:
    counted = torch.ones_like(previous, dtype=torch.bool)
    if lengths is not None:
        counted = torch.arange(previous.shape[1], device=x.device) < lengths[:, None]
    wrong = (counted & ((previous < 0) | (previous >= x.shape[1]))).any(dim=1)
    if wrong.any():
        raise ValueError(f"sample_token: previous row {int(wrong.nonzero()[0])} has {BAD_PREVIOUS}")
    seen = torch.zeros_like(x).scatter_add_(1, previous * counted, counted.float()) > 0
    return torch.where(seen, torch.where(x < 0, x * penalty, x / penalty), x)


def _kth_largest(x: Tensor, top_k: int | Tensor) -> Tensor:
    """(B, 1): the k-th largest of each row; -inf where k = 0 or k >= V."""
    vocabulary = x.shape[1]
    k = torch.as_tensor(top_k, device=x.device).expand(len(x))[:, None]
    limited = (k > 0) & (k < vocabulary)
    found = x.sort(dim=1, descending=True).values.gather(1, torch.where(limited, k - 1, 0))
    return torch.where(limited, found, -math.inf)


def _nucleus(weights: Tensor, p: Tensor) -> Tensor:
    ordered, index = weights.sort(dim=1, descending=True, stable=True)
    units = (ordered * WEIGHT_SCALE).long()
    mass = units.cumsum(dim=1)
    kept = (mass - units).double() < p * mass[:, -1:].double()
    return torch.where(kept | (p >= 1), ordered, 0.0).gather(1, index.argsort(dim=1))


def _exp(x: Tensor) -> Tensor:
    """e^x for x <= 0 in the operations, order and roundings of `vexp` in csrc/cpu/vec.h (at most 2 ULP)."""
    x = x.clamp(min=-87.33654)
    n = (x * 1.44269504088896341 + 12582912.0) - 12582912.0  # 1.5 * 2^23 rounds to an integer
    r = x - n * 0.693359375
    r = r - n * -2.12194440e-4
    p = torch.full_like(x, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c
    p = p * (r * r) + r + 1.0
    return p * ((n.int() + 127) << 23).view(torch.float32)
