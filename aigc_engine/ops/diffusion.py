"""The one update that every solver is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.ops.random import normal_rows
from aigc_engine.testing import Sample

MAX_TERMS = 8  # csrc/cpu/args.h: LinearUpdateArgs::kMaxTerms


def _check_linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    if not isinstance(terms, (list, tuple)) or not 1 <= len(terms) <= MAX_TERMS:
        given = len(terms) if isinstance(terms, (list, tuple)) else type(terms).__name__
        raise ValueError(f"linear_update: terms {given}, expected a list of 1 to {MAX_TERMS} tensors")
    x = terms[0]
    checks.tensor("linear_update", "terms[0]", x)
    shape, dtype, device = x.shape, x.dtype, x.device
    if dtype not in checks.FLOATS:
        raise TypeError(f"linear_update: terms[0] {dtype}, expected float32 or bfloat16; convert it")
    if not shape:
        raise ValueError("linear_update: terms[0] has 0 dimensions, expected at least 1")
    for i, term in enumerate(terms):
        if i:
            _check_like(f"terms[{i}]", term, x, shape, dtype, device)
    rows = shape[0]
    _check_host("coefficients", coefficients, (rows, len(terms)), torch.float32, device)
    if noise_scale is not None:
        if seeds is None or streams is None:
            raise ValueError(
                "linear_update: noise_scale without seeds and streams, expected all three or none"
            )
        _check_host("noise_scale", noise_scale, (rows,), torch.float32, device)
        _check_host("seeds", seeds, (rows,), torch.int64, device)
        _check_host("streams", streams, (rows,), torch.int64, device)
    elif seeds is not None or streams is not None:
        raise ValueError("linear_update: seeds or streams without noise_scale, expected all three or none")
    if out is not None:
        _check_like("out", out, x, shape, dtype, device)


def _check_like(
    name: str, value: Tensor, x: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    """`value` matches the first term, whose properties are given because reading them takes a while."""
    checks.tensor("linear_update", name, value)
    if value.shape != shape or value.dtype != dtype or value.device != device:
        checks.same("linear_update", name, value, "terms[0]", x)
        checks.shape("linear_update", name, value, tuple(shape))


def _check_host(
    name: str, value: Tensor, wanted: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Coefficients and the like: one number per row (and term), beside the terms."""
    if not isinstance(value, Tensor) or value.dtype != dtype:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"linear_update: {name} {got}, expected a tensor of {dtype}; convert it")
    if value.shape != wanted:
        checks.shape("linear_update", name, value, wanted)
    if value.device != device:
        raise ValueError(f"linear_update: {name} on {value.device}, expected {device} as terms[0]; move it")


def _samples_linear_update(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device)

    def noise(rows: int) -> dict[str, Tensor]:
        seeds = torch.randint(-(2**62), 2**62, (rows,), generator=g).to(device)
        streams = torch.randint(0, 2**40, (rows,), generator=g).to(device)
        return {"noise_scale": numbers(rows), "seeds": seeds, "streams": streams}

    for n in (1, 15, 16, 17, 63, 64, 65, 511, 513, 1000, 4097):
        yield Sample(f"length_{n}", ([randn(3, n), randn(3, n)], numbers(3, 2)), batch_axis=0)
        yield Sample(f"noise_{n}", ([randn(3, n), randn(3, n)], numbers(3, 2)), noise(3), batch_axis=0)
    for j in range(1, MAX_TERMS + 1):
        terms = [randn(5, 3, 7) for _ in range(j)]
        yield Sample(f"terms_{j}", (terms, numbers(5, j)), batch_axis=0)
        yield Sample(f"terms_{j}_noise", (terms, numbers(5, j)), noise(5), batch_axis=0)
    wide = randn(4, 2, 50)
    yield Sample("row_strides", ([wide[:, 0], wide[:, 1]], numbers(4, 2)), noise(4), batch_axis=0)
    yield Sample("strided", ([randn(4, 6, 10)[:, ::2, 1:], randn(4, 3, 9)], numbers(4, 2)), batch_axis=0)
    nhwc = randn(3, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last", ([nhwc, randn(3, 8, 5, 5)], numbers(3, 2)), noise(3), batch_axis=0)
    # Where a coefficient is zero the term doesn't count: history that isn't there yet, rows without noise.
    holes, scales = numbers(4, 3), noise(4)
    holes[1, 2], holes[2], scales["noise_scale"][1] = 0.0, 0.0, 0.0
    absent = randn(4, 30)
    absent[1:3] = torch.nan
    yield Sample("zero_coefficients", ([randn(4, 30), randn(4, 30), absent], holes), scales, batch_axis=0)
    yield Sample("no_rows", ([randn(0, 8)], numbers(0, 1)), noise(0))
    yield Sample("no_elements", ([randn(2, 0)], numbers(2, 1)), noise(2))
    latents, two, six = [randn(1, 4, 64, 64) for _ in range(6)], numbers(1, 2), numbers(1, 6)
    yield Sample("sd15_ddim", (latents[:2], two), bench=True)
    yield Sample("sd15_ddpm", (latents[:2], two), noise(1), bench=True)
    yield Sample("sd15_dpmpp_2m", (latents, six), bench=True)
    big = [randn(8, 4, 128, 128) for _ in range(2)]
    yield Sample("sdxl_ddim_b8", (big, numbers(8, 2)), bench=True)
    yield Sample("sdxl_ddpm_b8", (big, numbers(8, 2)), noise(8), bench=True)
    beyond_caches = [randn(64, 4, 128, 128) for _ in range(2)]
    yield Sample("sdxl_ddim_b64", (beyond_caches, numbers(64, 2)), bench=True)


def _cost(terms: Sequence[Tensor], coefficients: Tensor, **kwargs: Any) -> tuple[float, float]:
    elements, moved = terms[0].numel(), (len(terms) + 1) * terms[0].numel() * terms[0].element_size()
    noise = 60.0 if kwargs.get("noise_scale") is not None else 0.0
    return (2.0 * len(terms) + noise) * elements, float(moved)


@op(
    check=_check_linear_update,
    samples=_samples_linear_update,
    dtypes=checks.FLOATS,
    cost=_cost,
    exact=True,
)
def linear_update(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise_scale: Tensor | None = None,
    seeds: Tensor | None = None,
    streams: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""One solver step: a linear combination per row, with fresh noise made on the way.

    .. math:: \text{out}_b = \sum_j c_{bj}\, x_{jb} + s_b\, z(\text{seed}_b, \text{stream}_b)

    Summed left to right, the noise z (`philox_normal`) last. Where c or s is zero the term isn't read and
    doesn't count, whatever it holds, so a row may lack history that its neighbours have.

    References:
        T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
        https://arxiv.org/abs/2206.00364 (each solver of `diffusion/solver.py` is a table of c and s).

    Args:
        terms: x_j, one to eight tensors (B, ...) of one shape, float32 or bfloat16. Contiguous rows are
            read in place, whatever the stride between them.
        coefficients: c, (B, J) float32, on the terms' device as all below.
        noise_scale: s, (B,) float32 standard deviation of the noise, or None for no noise.
        seeds, streams: (B,) int64, the noise's key and stream per row; given with noise_scale only.
        out: result, of the terms' shape and dtype; it may be one of the terms, but not a shifted view of one.

    Returns:
        out, or a new contiguous tensor.

    Precision: float32, every product and sum rounded, no fused multiply-add: the same bits on every backend;
    a bfloat16 result is rounded once more.

    Raises:
        TypeError: dtypes that differ or aren't served.
        ValueError: no or too many terms, shapes that differ, tensors on different devices, noise half given.
    """
    rows, trailing = len(terms[0]), (1,) * (terms[0].ndim - 1)
    total = torch.zeros(terms[0].shape, dtype=torch.float32, device=terms[0].device)
    for term, c in zip(terms, coefficients.unbind(1), strict=True):
        c = c.reshape(rows, *trailing)
        total = torch.where(c != 0, total + c * term.float(), total)
    if noise_scale is not None and seeds is not None and streams is not None:
        s = noise_scale.reshape(rows, *trailing)
        total = torch.where(s != 0, total + s * normal_rows(seeds, streams, terms[0].shape[1:]), total)
    result = total.to(terms[0].dtype)
    return result if out is None else out.copy_(result)
