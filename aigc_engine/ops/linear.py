"""Linear layers with what follows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks, int8
from aigc_engine.ops.activation import ACTIVATIONS
from aigc_engine.ops.packing import check_weight, pack
from aigc_engine.packed import PackedWeight, tensor_of
from aigc_engine.testing import Sample

GATED = {"geglu": lambda a, b: a * F.gelu(b), "swiglu": lambda a, b: F.silu(a) * b}


def pack_linear(weight: Tensor, *, precision: str | None = None, quantize: str | None = None) -> PackedWeight:
    """Lays a linear layer's weight out for the native kernel; done once, used by `linear` as often as wanted.

    Args:
        weight: (N, K) float32 or bfloat16.
        precision: how float32 products are made. "highest": float32. "high": each float32 as two bfloat16
            terms, three tile products, about 1e-5 of the result's norm (an infinity may become NaN); where
            there are no tiles, float32.
            "medium": bfloat16, where that is faster. None: torch.get_float32_matmul_precision().
        quantize: "int8": integers up to 127, a scale max|w| / 127 for each output channel; `linear` then
            quantises each row of x alike, and adds int8 products exactly. Lossy: about 1 % of the result's
            norm for Gaussian x and weight; what the weight lost is PackedWeight.error. None: as `precision`.

    Raises:
        TypeError: weight isn't a float32 or bfloat16 tensor.
        ValueError: weight isn't (N, K) with N, K >= 1, or unknown precision or quantize; to be quantised, but
            with NaN or infinity, or K > 131072.
    """
    checks.floating("pack_linear", "weight", weight)
    _check_matrix("pack_linear", weight)
    return pack("linear", weight, [weight], precision, quantize)


def _check_matrix(name: str, weight: Tensor | PackedWeight) -> None:
    shape = tuple(weight.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name}: weight shape {shape}, expected (N, K), both at least 1")


def _check_linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.01,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    checks.floating("linear", "x", x)
    checks.rank("linear", "x", x, 1)
    check_weight("linear", "linear", weight, x)
    _check_matrix("linear", weight)
    N, K = weight.shape
    if x.shape[-1] != K:
        raise ValueError(f"linear: x shape {tuple(x.shape)}, expected (..., {K}) as weight {(N, K)}")
    if bias is not None:
        checks.vector("linear", "bias", bias, N, "x", x)
    checks.choice("linear", "act", act, {**ACTIVATIONS, **GATED})
    if not math.isfinite(slope):
        raise ValueError(f"linear: slope {slope}, expected a finite number")
    if act in GATED and N % 2:
        raise ValueError(f"linear: weight shape {(N, K)}, expected an even N for act {act!r}: two halves")
    wanted = (*x.shape[:-1], N // 2 if act in GATED else N)
    per_sample = (wanted[0], *[1] * (len(wanted) - 2), wanted[-1])
    for name, value, allowed in (("gate", gate, {wanted, per_sample}), ("residual", residual, {wanted})):
        if value is None:
            continue
        checks.tensor("linear", name, value)
        checks.same("linear", name, value, "x", x)
        if tuple(value.shape) not in allowed:
            expected = " or ".join(map(str, sorted(allowed, reverse=True)))
            raise ValueError(f"linear: {name} shape {tuple(value.shape)}, expected {expected}")


def _facts(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> Mapping[str, Any]:
    packed = isinstance(weight, PackedWeight) and weight.data is not None
    gated = options.get("act") in GATED
    return {
        "weight": "packed" if packed else "tensor",
        "gated_tail": weight.shape[0] // 2 % 16 if gated else 0,
    }


def _cost(x: Tensor, weight: Tensor | PackedWeight, *args: Any, **options: Any) -> tuple[float, float]:
    N, K = weight.shape
    M = x.numel() // K
    out = N // 2 if options.get("act") in GATED else N
    return 2.0 * M * K * N, float(M * (K + out) + N * K) * x.element_size()


# (M, K, N) of linear layers, and the activation that follows.
WORKLOADS = {
    "sd15_64px_projection": (4096, 320, 320, "none"),
    "sd15_64px_geglu": (8192, 320, 2560, "geglu"),
    "sd15_32px_geglu": (2048, 640, 5120, "geglu"),
    "sd15_32px_down": (2048, 2560, 640, "none"),
    "sd15_16px_geglu": (512, 1280, 10240, "geglu"),
    "sd15_16px_down": (512, 5120, 1280, "none"),
    "dit_xl_mlp": (512, 1152, 4608, "gelu_tanh"),
    "gpt2_mlp": (256, 768, 3072, "gelu_tanh"),
    "square_2048": (2048, 2048, 2048, "none"),
    **{f"gpt2_head_{M}": (M, 768, 50257, "none") for M in (1, 4, 8)},
    **{f"llama_1b_mlp_{M}": (M, 2048, 8192, "none") for M in (1, 4, 8)},
}


def _samples(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def packed(N: int, K: int, **options: Any) -> PackedWeight:
        return pack_linear((torch.randn((N, K), generator=g) / math.sqrt(K)).to(device, dtype), **options)

    for n in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100):
        yield Sample(f"rows_{n}", (randn(n, 40), packed(24, 40), randn(24)), batch_axis=0)
        yield Sample(f"depth_{n}", (randn(3, n), packed(33, n)), batch_axis=0)
        yield Sample(f"columns_{n}", (randn(5, 20), packed(n, 20), randn(n)), batch_axis=0)
    for act in ACTIVATIONS:
        yield Sample(act, (randn(7, 24), packed(20, 24), randn(20)), {"act": act}, batch_axis=0)
    for act in GATED:
        yield Sample(act, (randn(7, 24), packed(96, 24), randn(96)), {"act": act}, batch_axis=0)
    yield Sample("chunks", (randn(50, 1100), packed(70, 1100), randn(70)), batch_axis=0)
    gated = {"act": "silu", "gate": randn(2, 1, 48), "residual": randn(2, 9, 48)}
    yield Sample("gate_per_sample", (randn(2, 9, 40), packed(48, 40), randn(48)), gated, batch_axis=0)
    full = {"gate": randn(2, 9, 48), "residual": randn(2, 9, 96)[..., ::2]}
    yield Sample("gate_full", (randn(2, 9, 40), packed(48, 40)), full, batch_axis=0)
    yield Sample("fused_projection", (randn(2, 9, 120)[..., 40:80], packed(48, 40)), batch_axis=0)
    yield Sample("transposed", (randn(2, 40, 9).transpose(1, 2), packed(48, 40)), batch_axis=0)
    yield Sample("one_axis", (randn(40), packed(48, 40)))
    yield Sample("empty", (randn(0, 40), packed(48, 40)))
    whole = torch.randint(-8, 9, (37, 90), generator=g).to(device, dtype)
    weight = pack_linear(torch.randint(-2, 3, (50, 90), generator=g).to(device, dtype))
    yield Sample(
        "integers", (whole, weight, whole[0, :50].clone()), {"act": "relu"}, exact=dtype == torch.float32
    )
    yield from _int8_samples(randn, packed)
    for name, (M, K, N, act) in WORKLOADS.items():
        yield Sample(name, (randn(M, K), packed(N, K), randn(N)), {"act": act}, bench=True)


def _int8_samples(randn: Callable[..., Tensor], packed: Callable[..., PackedWeight]) -> Iterator[Sample]:
    """Quantising is defined in float32, so that float64 has the same integers and parity a definite truth."""
    quantised = partial(packed, quantize="int8")
    for n in (1, 3, 16, 17, 33, 63, 64, 65, 130):
        yield Sample(f"int8_rows_{n}", (randn(n, 70), quantised(24, 70), randn(24)), batch_axis=0)
        yield Sample(f"int8_depth_{n}", (randn(3, n), quantised(34, n)), batch_axis=0)
        yield Sample(f"int8_columns_{n}", (randn(5, 70), quantised(n, 70), randn(n)), batch_axis=0)
    for act in GATED:
        yield Sample(f"int8_{act}", (randn(7, 70), quantised(96, 70), randn(96)), {"act": act}, batch_axis=0)
    yield Sample(
        "int8_chunks", (randn(50, 2200), quantised(70, 2200), randn(70)), {"act": "gelu"}, batch_axis=0
    )
    full = {"act": "silu", "gate": randn(2, 1, 48), "residual": randn(2, 9, 96)[..., ::2]}
    yield Sample(
        "int8_gate", (randn(2, 9, 120)[..., 40:80], quantised(48, 40), randn(48)), full, batch_axis=0
    )
    scaled = randn(7, 70)
    for row, factor in enumerate((2.0**-110, 2.0**-90, 1.0, 3.0, 0.0, 2.0**60, 1e-40)):
        scaled[row] *= factor
    yield Sample("int8_scales", (scaled, quantised(24, 70)), batch_axis=0)
    odd = randn(4, 70)
    odd[0, 3], odd[1, 69], odd[2, 0] = torch.nan, torch.inf, -torch.inf
    yield Sample("int8_not_finite", (odd, quantised(24, 70), randn(24)), {"act": "silu"}, batch_axis=0)
    # A largest magnitude of 127 makes the scales 1.
    whole, weight = (randn(n, 90).mul(40).round().clamp(-126, 126) for n in (37, 50))
    whole[:, 5], weight[:, 7] = 127.0, -127.0
    yield Sample(
        "int8_integers",
        (whole, pack_linear(weight, quantize="int8"), whole[0, :50].clone()),
        {"act": "relu"},
        exact=True,
    )


def _step_by_step(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.01,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """What one writes with PyTorch: every step in x's dtype (int8 has no such thing)."""
    if isinstance(weight, PackedWeight) and weight.product == "int8":
        return linear.reference(x, weight, bias, act=act, slope=slope, gate=gate, residual=residual)
    y = F.linear(x, tensor_of(weight).to(x.dtype), bias)
    y = GATED[act](*y.chunk(2, dim=-1)) if act in GATED else ACTIVATIONS[act](y, slope)
    y = y if gate is None else y * gate
    return y if residual is None else y + residual


@op(
    check=_check_linear,
    samples=_samples,
    dtypes=checks.FLOATS,
    facts=_facts,
    cost=_cost,
    tiled=True,
    peer=_step_by_step,
)
def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.01,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""Linear layer with activation, gate and residual in one pass over the result.

    .. math:: y = \operatorname{act}(x W^\top + b) \odot g + r

    References:
        I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", chapter 6, 2016,
        https://www.deeplearningbook.org
        N. Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202 (gated pairs)
        W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers", 2022,
        https://arxiv.org/abs/2212.09748 (gate and residual)

    Args:
        x: (..., K) float32 or bfloat16; rows may lie apart, as in a slice of a fused projection.
        weight: (N, K) in x's dtype, or `pack_linear` of it, which the native kernel needs.
        bias: (N,) in x's dtype, or None.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid; geglu (first half times gelu
            of the second) and swiglu (silu of the first half times the second) halve N.
        slope: leaky_relu's slope below zero.
        gate: g, y's shape, or (B, 1, ..., N) for x (B, ..., K): one for each sample; None is 1.
        residual: r, y's shape; None is 0.

    Returns:
        (..., N) in x's dtype, or (..., N / 2) for a gated act.

    Precision: as the weight was packed (`pack_linear`); sums and all that follows in float32, rounded once. A
        row's bits don't depend on the other rows or on threads; they differ between ISA levels, but for int8.
        There a row of x is q s, s = max|x| / 127, q integers; its sums of integers are exact. A row with a
        NaN or an infinity gives NaN.

    Memory: the result; blocks of x in tiles, at most half of the L2 cache a thread.

    Raises:
        TypeError: differing dtypes, or weight neither tensor nor packed.
        ValueError: shapes don't fit, unknown act, or the weight was changed after it was packed.
    """
    if isinstance(weight, PackedWeight) and weight.product == "int8":
        wide = int8.product(x, weight.source)
        wide = wide if bias is None else wide + bias
    else:
        y = F.linear(x, tensor_of(weight).to(x.dtype), bias)
        wide = y.float() if y.dtype == torch.bfloat16 else y
    if act in GATED:
        wide = GATED[act](*wide.chunk(2, dim=-1))
    else:
        wide = ACTIVATIONS[act](wide, slope)
    if gate is not None:
        wide = wide * gate
    if residual is not None:
        wide = wide + residual
    return wide.to(x.dtype)
