"""Layers shared by the models, in forms whose rows do not depend on the size of the batch.

Native kernels see to that themselves. Where the PyTorch reference runs, the forms do.

Measured with PyTorch 2.13 on CPU, float32, 1, 2 and 4 threads, n in {1, 2, 3, 5, 7, 8, 16, 33, 64} rows
against the same rows alone. Bitwise equal: channels-last `conv2d` (3x3, and 1x1 above one pixel) for n >= 2,
`group_norm`, `layer_norm`, eval `batch_norm`, `bmm`, `softmax`, `tanh`, `sin`, nearest `interpolate`, and
`linear` in blocks of exactly 16 rows. Different: any convolution at n = 1 (small inputs leave oneDNN),
contiguous 1x1 convolutions, 1x1 on one pixel, `linear` at n < 16 (gemv and small blockings), one `linear` or
`baddbmm` over many blocks with a long inner axis, strided `conv_transpose2d` with 2 threads or more, and
`silu` or `sigmoid` where a row or a thread's share is no multiple of 32 (vector body against scalar tail).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aigc_engine import capability, ops
from aigc_engine.dispatch import AUTO, chosen_backend, tracing
from aigc_engine.ops.rowwise import rowwise_linear as rowwise_linear  # the models take both from here
from aigc_engine.ops.rowwise import rowwise_silu as rowwise_silu


def native_rows(x: Tensor) -> bool:
    """Whether native kernels, whose rows are the same in every batch, compute layers of x in this context.

    A network that is being captured will run on them.
    """
    if tracing():
        return True
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return capability.missing("native") is None and chosen_backend(ops.conv2d) in (AUTO, "native")


class _Packs:
    """Packs a layer's weight when it's first needed, and again when it was changed."""

    weight: Tensor
    _packed: ops.PackedWeight | None = None

    def packed(self, pack: Callable[..., ops.PackedWeight], **layout: Any) -> ops.PackedWeight | Tensor:
        if tracing():
            return self.weight  # whoever captures packs it
        found = self._packed
        if found is None or not found.holds(self.weight):
            found = self._packed = pack(self.weight, **layout)
        return found


class Linear(nn.Linear, _Packs):
    """`nn.Linear` through `ops.linear`; on the reference, (B, K) through `rowwise_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        if not native_rows(input):
            return rowwise_linear(input, self.weight, self.bias)
        return ops.linear(input, self.packed(ops.pack_linear), self.bias)


class Conv2d(nn.Conv2d, _Packs):
    """`nn.Conv2d` through `ops.conv2d`, with what it can do before and after the convolution."""

    def forward(self, input: Tensor, **around: Any) -> Tensor:
        bias = self.bias
        weight: Any = self.weight
        if native_rows(input):
            weight = self.packed(ops.pack_conv2d, groups=self.groups)
        elif weight.dtype != input.dtype or torch.is_autocast_enabled(input.device.type):
            cast = {
                name: value.to(input.dtype) for name, value in around.items() if isinstance(value, Tensor)
            }
            around, weight = {**around, **cast}, weight.to(input.dtype)
            bias = None if bias is None else bias.to(input.dtype)
        stride, padding = self.stride, self.padding
        return ops.conv2d(input, weight, bias, stride=stride, padding=padding, groups=self.groups, **around)


def group_norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU(GroupNorm(x)) of x (B, C, H, W)."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)  # they differ under autocast
    return ops.group_norm_silu(x, norm.num_groups, weight, bias, eps=norm.eps)


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm(x) of x (B, C, H, W)."""
    return ops.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), eps=norm.eps)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of tensors (B, N, T, D)."""
    return ops.attention(q, k, v)


def channels_last(x: Tensor) -> Tensor:
    """The same values, stored as (B, H, W, C)."""
    return x.contiguous(memory_format=torch.channels_last)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t (B,): cosines of t w_i, then sines, (B, dim) in all, w_i = max_period^(-2 i / dim).

    References: Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762
    """
    half = dim // 2
    # In float64: t w_i reaches 1000, where float32 has 6e-5 radians left.
    rates = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float64) * (-math.log(max_period) / half)
    )
    angles = t.double()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()
