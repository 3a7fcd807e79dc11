"""Pointwise activations with their bias."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

ACTIVATIONS = {
    "none": lambda x, slope: x,
    "relu": lambda x, slope: torch.relu(x),
    "leaky_relu": F.leaky_relu,
    "silu": lambda x, slope: F.silu(x),
    "gelu": lambda x, slope: F.gelu(x),
    "gelu_tanh": lambda x, slope: F.gelu(x, approximate="tanh"),
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: torch.sigmoid(x),
}


def _check_bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> None:
    checks.floating("bias_act", "x", x)
    checks.rank("bias_act", "x", x, 2)
    if bias is not None:
        checks.vector("bias_act", "bias", bias, x.shape[1], "x", x)
    checks.choice("bias_act", "act", act, ACTIVATIONS)
    if not math.isfinite(slope) or not math.isfinite(gain):
        raise ValueError(f"bias_act: slope {slope}, gain {gain}, expected finite numbers")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"bias_act: clamp {clamp}, expected None or a bound >= 0")


def _samples_bias_act(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=g) * 2).to(device, dtype)

    for act in ACTIVATIONS:
        kwargs = {"act": act, "gain": math.sqrt(2), "clamp": 256.0}
        yield Sample(f"{act}", (randn(3, 17, 5, 7), randn(17)), kwargs, batch_axis=0)
    for n in (1, 15, 16, 17, 31, 33, 65, 1000):
        yield Sample(f"inner_{n}", (randn(2, 3, n), randn(3)), {"act": "leaky_relu"}, batch_axis=0)
        yield Sample(f"channels_{n}", (randn(3, n), randn(n)), {"act": "silu"}, batch_axis=0)
    nhwc = randn(2, 33, 9, 9).contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last", (nhwc, randn(33)), {"act": "leaky_relu"}, batch_axis=0)
    yield Sample("strided", (randn(4, 6, 10)[:, ::2, 1:], randn(3)), {"act": "gelu"}, batch_axis=0)
    yield Sample("no_bias", (randn(2, 3, 8),), {"act": "tanh", "clamp": 0.25}, batch_axis=0)
    yield Sample("empty", (randn(0, 3, 8), randn(3)), {"act": "relu"})
    whole = torch.randint(-8, 9, (2, 3, 40), generator=g).to(device, dtype)
    yield Sample("integers", (whole, whole[0, :, 0].clone()), {"act": "relu", "gain": 2.0}, exact=True)
    yield Sample("stylegan2_256px", (randn(4, 128, 128, 128), randn(128)), {"act": "leaky_relu"}, bench=True)


@op(
    check=_check_bias_act,
    samples=_samples_bias_act,
    dtypes=checks.FLOATS,
    facts=lambda x, *args, **kwargs: {},
    cost=lambda x, *args, **kwargs: (4.0 * x.numel(), 2.0 * x.numel() * x.element_size()),
)
def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    r"""Adds a channel bias, applies an activation, scales and clamps, in one pass.

    .. math:: y = \operatorname{clamp}(\text{gain} \cdot \text{act}(x + b), -c, c)

    References:
        T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020,
        https://arxiv.org/abs/1912.04958 (the fused op of its implementation).

    Args:
        x: (B, C, ...) floating; contiguous or channels-last keep their layout.
        bias: (C,) in x's dtype, or None.
        act: none, relu, leaky_relu, silu, gelu (erf), gelu_tanh, tanh, sigmoid.
        slope: leaky_relu's slope below zero.
        gain: factor after the activation (sqrt(2) keeps the variance of leaky_relu).
        clamp: bound c >= 0 on the result's magnitude, or None.

    Returns:
        Tensor of x's shape and dtype.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x isn't floating, or bias has another dtype.
        ValueError: bias isn't (C,), unknown act, negative clamp.
    """
    wide = x.float() if x.dtype == torch.bfloat16 else x
    if bias is not None:
        wide = wide + bias.to(wide.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    y = ACTIVATIONS[act](wide, slope) * gain
    if clamp is not None:
        y = y.clamp(-clamp, clamp)
    return y.to(x.dtype)


def _check_halves(name: str, x: Tensor) -> None:
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 1)
    if x.shape[-1] < 2 or x.shape[-1] % 2:
        raise ValueError(f"{name}: x shape {tuple(x.shape)}, expected an even last axis: two halves")


def _check_geglu(x: Tensor) -> None:
    _check_halves("geglu", x)


def _check_swiglu(x: Tensor) -> None:
    _check_halves("swiglu", x)


def _samples_glu(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=g) * 3).to(device, dtype)

    for D in (1, 15, 16, 17, 31, 32, 33, 65, 1000):
        yield Sample(f"width_{D}", (randn(3, 2 * D),), batch_axis=0)
    yield Sample("tokens", (randn(2, 5, 96),), batch_axis=0)
    yield Sample("transposed", (randn(3, 64, 5).transpose(1, 2),), batch_axis=0)
    yield Sample("one_axis", (randn(64),))
    yield Sample("empty", (randn(0, 64),))
    yield Sample("sd15_unet_32px_latent", (randn(2048, 5120),), bench=True)
    yield Sample("llama_1b_512_tokens", (randn(512, 11008),), bench=True)


def _glu_cost(x: Tensor) -> tuple[float, float]:
    return 10.0 * x.numel(), 1.5 * x.numel() * x.element_size()


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


@op(check=_check_geglu, samples=_samples_glu, dtypes=checks.FLOATS, cost=_glu_cost)
def geglu(x: Tensor) -> Tensor:
    r"""Gated linear unit with gelu (erf): the value is the first half, the gate the second.

    .. math:: y = a\,\operatorname{gelu}(g), \quad x = [a\,|\,g]

    References:
        N. Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202

    Args:
        x: (..., 2 D) floating, in diffusers' order of the halves.

    Returns:
        (..., D) in x's dtype.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x isn't floating.
        ValueError: the last axis isn't even.
    """
    value, gate = _widened(x).chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(x.dtype)


@op(check=_check_swiglu, samples=_samples_glu, dtypes=checks.FLOATS, cost=_glu_cost)
def swiglu(x: Tensor) -> Tensor:
    r"""Gated linear unit with silu: the gate is the first half, the value the second.

    .. math:: y = \operatorname{silu}(g)\,a, \quad x = [g\,|\,a]

    References:
        N. Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202

    Args:
        x: (..., 2 D) floating, in Llama's order of the halves (gate_proj, up_proj).

    Returns:
        (..., D) in x's dtype.

    Precision: computed in float32, rounded once.

    Raises:
        TypeError: x isn't floating.
        ValueError: the last axis isn't even.
    """
    gate, value = _widened(x).chunk(2, dim=-1)
    return (F.silu(gate) * value).to(x.dtype)
