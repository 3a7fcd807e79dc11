"""Normalisations over groups of channels and over the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

TO_BFLOAT16 = {"dtype": torch.bfloat16}


def _check_eps(name: str, eps: float) -> None:
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{name}: eps {eps}, expected a finite number >= 0")


def _check_affine(name: str, x: Tensor, length: int, weight: Tensor | None, bias: Tensor | None) -> None:
    for argument, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            checks.vector(name, argument, value, length, "x", x)


def _check_dtype(name: str, dtype: torch.dtype | None) -> None:
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name}: dtype {dtype!r}, expected a torch.dtype or None")
    if not dtype.is_floating_point:
        raise TypeError(f"{name}: dtype {dtype}, expected a floating dtype")


def _check_groups(
    name: str, x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 2)
    if isinstance(num_groups, bool) or not isinstance(num_groups, int):
        raise TypeError(f"{name}: num_groups {num_groups!r}, expected an int")
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"{name}: num_groups {num_groups}, expected a divisor of x's {x.shape[1]} channels")
    if x.shape[0] and x.numel() // x.shape[0] == num_groups:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected more than one value in each group")
    _check_affine(name, x, x.shape[1], weight, bias)
    _check_eps(name, eps)


def _check_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> None:
    _check_groups("group_norm", x, num_groups, weight, bias, eps)
    _check_dtype("group_norm", dtype)


def _check_group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> None:
    _check_groups("group_norm_silu", x, num_groups, weight, bias, eps)
    _check_dtype("group_norm_silu", dtype)


def _samples_group_norm(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=g) + mean).to(device, dtype)

    def nhwc(*shape: int, mean: float = 0.0) -> Tensor:
        return randn(*shape, mean=mean).contiguous(memory_format=torch.channels_last)

    for C, groups in ((4, 4), (6, 2), (33, 3), (40, 8), (64, 2), (96, 32), (320, 32)):
        affine = randn(C), randn(C)
        yield Sample(f"first_{C}_{groups}", (randn(2, C, 5, 7), groups, *affine), batch_axis=0)
        yield Sample(f"last_{C}_{groups}", (nhwc(2, C, 5, 7), groups, *affine), batch_axis=0)
    for n in (1, 15, 17, 33, 1000):
        yield Sample(f"inner_{n}", (randn(3, 8, n), 4, randn(8), randn(8)), batch_axis=0)
    yield Sample("blocks_first", (randn(2, 4, 90, 91), 1, randn(4), randn(4)), batch_axis=0)
    yield Sample("blocks_last", (nhwc(2, 24, 33, 37), 6, randn(24), randn(24)), batch_axis=0)
    yield Sample("no_affine", (randn(2, 8, 9), 2), {"eps": 1e-6}, batch_axis=0)
    yield Sample("two_axes", (randn(3, 64), 4, randn(64)), batch_axis=0)
    yield Sample("sliced", (randn(4, 16, 6, 7)[:, ::2, :, 1:], 4, randn(8), randn(8)), batch_axis=0)
    for layout in (randn, nhwc):
        yield Sample(f"mean_1e3_{layout.__name__}", (layout(2, 16, 9, 9, mean=1e3), 4), batch_axis=0)
    yield Sample("constant", (torch.full((2, 8, 5), 3.0).to(device, dtype), 2), batch_axis=0)
    poisoned = nhwc(2, 8, 4, 4)
    poisoned[1, 5] = math.nan
    yield Sample("nan_stays_in_its_group", (poisoned, 4), batch_axis=0)
    yield Sample("empty", (randn(0, 8, 3), 2))
    for layout in (randn, nhwc):
        for C in (24, 64):
            name = f"bfloat16_result_{C}_{layout.__name__}"
            yield Sample(name, (layout(2, C, 5, 7), 4, randn(C), randn(C)), TO_BFLOAT16, batch_axis=0)
    unet = nhwc(2, 320, 64, 64)
    yield Sample("sd15_unet_64px_latent", (unet, 32, randn(320), randn(320)), bench=True)
    vae = nhwc(1, 128, 256, 256)
    yield Sample("sd_vae_256px", (vae, 32, randn(128), randn(128)), bench=True)


def _traffic(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> tuple[float, float]:
    """About 8 operations an element; x read once and the result written once."""
    return 8.0 * x.numel(), float(x.numel() * (x.element_size() + (dtype or x.dtype).itemsize))


def _facts(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> dict[str, Any]:
    """`result`: x's dtype ("as x"), or another by its name."""
    return {"result": "as x" if dtype in (None, x.dtype) else str(dtype).removeprefix("torch.")}


@op(check=_check_group_norm, samples=_samples_group_norm, dtypes=checks.FLOATS, facts=_facts, cost=_traffic)
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Normalises each group of channels of each sample.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}}\, w_c + b_c

    References:
        Y. Wu, K. He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494

    Args:
        x: (B, C, ...) floating; contiguous or channels-last keep their layout.
        num_groups: G, a divisor of C; channels g C/G to (g+1) C/G share a mean and a (biased) variance.
        weight, bias: (C,) in x's dtype, or None for 1 and 0.
        eps: added to the variance, >= 0.
        dtype: the result's, floating; None for x's. bfloat16 from float32 is what a product in bfloat16
            takes next.

    Returns:
        Tensor of x's shape, in `dtype`.

    Precision: statistics about a shift, in float32 blocks joined in float64; rounded once.

    Memory: the result, and partial sums of some C / 256 of x.

    Raises:
        TypeError: x or `dtype` isn't floating, or weight or bias has another dtype than x.
        ValueError: G doesn't divide C, a group of a single value, wrong shapes, negative eps.
    """
    return F.group_norm(x, num_groups, weight, bias, eps).to(dtype or x.dtype)


@op(
    check=_check_group_norm_silu,
    samples=_samples_group_norm,
    dtypes=checks.FLOATS,
    facts=_facts,
    cost=_traffic,
)
def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""`group_norm` and then silu, in one pass over the result.

    .. math:: y = v\,\operatorname{sigmoid}(v), \quad v = \operatorname{group\_norm}(x)

    References:
        Y. Wu, K. He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494
        S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units", 2017, https://arxiv.org/abs/1702.03118

    Args:
        x: (B, C, ...) floating; contiguous or channels-last keep their layout.
        num_groups: G, a divisor of C.
        weight, bias: (C,) in x's dtype, or None for 1 and 0.
        eps: added to the variance, >= 0.
        dtype: the result's, floating; None for x's. bfloat16 from float32 is what a product in bfloat16
            takes next.

    Returns:
        Tensor of x's shape, in `dtype`.

    Precision: as `group_norm`; silu in float32 before the one rounding.

    Raises:
        TypeError, ValueError: as `group_norm`.
    """
    return F.silu(F.group_norm(x, num_groups, weight, bias, eps)).to(dtype or x.dtype)


def _check_last_axis(name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 1)
    if x.shape[-1] == 0:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected at least one value in the last axis")
    _check_affine(name, x, x.shape[-1], weight, bias)
    _check_eps(name, eps)


def _check_layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    _check_last_axis("layer_norm", x, weight, bias, eps)
    _check_dtype("layer_norm", dtype)
    for argument, value in (("scale", scale), ("shift", shift)):
        if value is None:
            continue
        checks.rank("layer_norm", "x", x, 2)  # an axis of samples
        checks.tensor("layer_norm", argument, value)
        checks.same("layer_norm", argument, value, "x", x)
        if value.shape not in ((x.shape[0], x.shape[-1]), _broadcast_shape(x)):
            raise ValueError(
                f"layer_norm: {argument} shape {tuple(value.shape)}, expected {(x.shape[0], x.shape[-1])}"
                f" or {_broadcast_shape(x)}"
            )


def _broadcast_shape(x: Tensor) -> tuple[int, ...]:
    """(B, 1, ..., 1, D) of x (B, ..., D)."""
    return (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])


def _check_rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> None:
    _check_last_axis("rms_norm", x, weight, None, eps)
    _check_dtype("rms_norm", dtype)


def _samples_rows(
    dtype: torch.dtype,
    device: str,
    vectors: int,
    extra: Callable[[Callable[..., Tensor]], Iterator[Sample]],
) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    for D in (1, 15, 16, 17, 31, 32, 33, 63, 65, 1000, 1152, 9000):
        yield Sample(f"width_{D}", (randn(3, D), *(randn(D) for _ in range(vectors))), batch_axis=0)
    yield Sample("no_affine", (randn(2, 5, 48),), {"eps": 1e-3}, batch_axis=0)
    yield Sample("weight_only", (randn(2, 5, 48), randn(48)), batch_axis=0)
    yield Sample("transposed", (randn(6, 40, 4).transpose(1, 2), randn(40)), batch_axis=0)
    yield Sample("mean_1e3", (randn(4, 100) + 1e3,), batch_axis=0)
    yield Sample("one_axis", (randn(50), randn(50)))
    yield Sample("empty", (randn(0, 48), randn(48)))
    for D in (40, 64):
        yield Sample(f"bfloat16_result_{D}", (randn(7, D), randn(D)), TO_BFLOAT16, batch_axis=0)
    yield from extra(randn)
    yield Sample("dit_xl_2_256px", (randn(512, 1152), *(randn(1152) for _ in range(vectors))), bench=True)
    yield Sample("gpt2_1024_tokens", (randn(1024, 768), *(randn(768) for _ in range(vectors))), bench=True)


def _samples_modulated(randn: Callable[..., Tensor]) -> Iterator[Sample]:
    """Scale and shift for each sample, as a DiT's blocks have them."""
    for D in (17, 64, 100):
        both = {"scale": randn(3, D), "shift": randn(3, D)}
        yield Sample(f"modulated_{D}", (randn(3, 7, D), randn(D), randn(D)), both, batch_axis=0)
    yield Sample("scale_only", (randn(5, 33),), {"scale": randn(5, 33)}, batch_axis=0)
    yield Sample("shift_only", (randn(2, 9, 48),), {"shift": randn(2, 1, 48)}, batch_axis=0)
    shift, scale, _ = randn(2, 3 * 40).chunk(3, dim=1)
    yield Sample("cut_from_one", (randn(2, 6, 40),), {"scale": scale, "shift": shift}, batch_axis=0)
    axes = {"scale": randn(2, 1, 1, 40), "shift": randn(2, 40), **TO_BFLOAT16}
    yield Sample("four_axes", (randn(2, 3, 5, 40),), axes, batch_axis=0)
    shift, scale, _ = randn(2, 3 * 1152).chunk(3, dim=1)
    dit = {"eps": 1e-6, "scale": scale, "shift": shift}
    yield Sample("dit_xl_2_256px_modulated", (randn(2, 256, 1152),), dit, bench=True)


def _samples_layer_norm(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    return _samples_rows(dtype, device, 2, _samples_modulated)


def _samples_rms_norm(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    return _samples_rows(dtype, device, 1, lambda randn: iter(()))


@op(check=_check_layer_norm, samples=_samples_layer_norm, dtypes=checks.FLOATS, facts=_facts, cost=_traffic)
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Normalises the last axis; with a scale and a shift for each sample, adaptively.

    .. math:: y = \left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, w + b\right) (1 + s_B) + t_B

    References:
        J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450
        W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers", 2022,
        https://arxiv.org/abs/2212.09748 (adaLN-Zero: s and t come from the time and the class)

    Args:
        x: (..., D) floating; (B, ..., D) with scale or shift.
        weight, bias: (D,) in x's dtype, or None for 1 and 0.
        eps: added to the variance, >= 0.
        scale, shift: s and t, (B, D) or (B, 1, ..., D) in x's dtype, or None for 0; they may be cut out of a
            wider tensor.
        dtype: the result's, floating; None for x's. bfloat16 from float32 is what a product in bfloat16
            takes next.

    Returns:
        Tensor of x's shape, in `dtype`.

    Precision: statistics about a shift, in float32 blocks joined in float64; w (1 + s) and b (1 + s) + t in
        float32; rounded once.

    Raises:
        TypeError: x or `dtype` isn't floating, or another argument has another dtype than x.
        ValueError: wrong shapes, an empty last axis, negative eps.
    """
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if scale is not None:
        y = y * (1 + scale.reshape(_broadcast_shape(x)))
    if shift is not None:
        y = y + shift.reshape(_broadcast_shape(x))
    return y.to(dtype or x.dtype)


@op(check=_check_rms_norm, samples=_samples_rms_norm, dtypes=checks.FLOATS, facts=_facts, cost=_traffic)
def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Divides the last axis by its root mean square.

    .. math:: y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}}\, w

    References:
        B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, https://arxiv.org/abs/1910.07467

    Args:
        x: (..., D) floating.
        weight: (D,) in x's dtype, or None for 1.
        eps: added to the mean square, >= 0.
        dtype: the result's, floating; None for x's.

    Returns:
        Tensor of x's shape, in `dtype`.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x or `dtype` isn't floating, or weight has another dtype than x.
        ValueError: wrong shapes, an empty last axis, negative eps.
    """
    wide = x.float() if x.dtype == torch.bfloat16 else x
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(y.dtype)
    return y.to(dtype or x.dtype)
