"""The inputs that PyTorch tests its own ops with, through the native kernels of ours that do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_engine import ops
from aigc_engine.dispatch import use_backend
from aigc_engine.testing import map_tensors, parity_failure, to_float64

op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db

DTYPES = (torch.float32, torch.bfloat16)


class Beyond(Exception):
    """A sample that the op doesn't claim to serve."""


def only(condition: bool) -> None:
    if not condition:
        raise Beyond


def batched(x: Tensor, rank: int, call: Callable[[Tensor], Tensor]) -> Tensor:
    """PyTorch takes a lone sample too."""
    return call(x) if x.ndim == rank else call(x[None])[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    only(weight.ndim == 2 and x.ndim > 1)
    return ops.linear(x, ops.pack_linear(weight), bias)


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1, **kwargs: Any
) -> Tensor:
    only(not isinstance(kwargs.get("padding"), str))
    numbers = {key: value[0] if isinstance(value, tuple) else value for key, value in kwargs.items()}
    packed = ops.pack_conv1d(weight, groups=groups)
    return batched(x, 3, lambda x: ops.conv1d(x, packed, bias, groups=groups, **numbers))


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1, **kwargs: Any
) -> Tensor:
    only(not isinstance(kwargs.get("padding"), str))
    only(groups == 1 or weight.shape[1] > 1)  # depthwise with few taps and no more to do is PyTorch's
    packed = ops.pack_conv2d(weight, groups=groups)
    return batched(x, 4, lambda x: ops.conv2d(x, packed, bias, groups=groups, **kwargs))


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    only(kwargs.pop("groups", 1) == 1 and kwargs.pop("dilation", 1) in (1, (1, 1)))
    packed = ops.pack_conv_transpose2d(weight, stride=kwargs.get("stride", 1))
    return batched(x, 4, lambda x: ops.conv_transpose2d(x, packed, bias, **kwargs))


def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    only(kwargs.pop("groups", 1) == 1 and kwargs.pop("dilation", 1) in (1, (1,)))
    numbers = {key: value[0] if isinstance(value, tuple) else value for key, value in kwargs.items()}
    packed = ops.pack_conv_transpose1d(weight, stride=numbers.get("stride", 1))
    return batched(x, 3, lambda x: ops.conv_transpose1d(x, packed, bias, **numbers))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    only(dropout_p == 0.0 and q.shape[-1] == v.shape[-1] and 2 < q.ndim == k.ndim <= 4)
    lead = 4 - q.ndim
    q, k, v = (x[(None,) * lead] for x in (q, k, v))
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
    return ops.attention(q, k, v, mask=attn_mask, causal=is_causal, scale=scale)[(0,) * lead]


def layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    only(len(shape) == 1 and eps > 0)
    return ops.layer_norm(x, weight, bias, eps=eps)


def rms_norm(x: Tensor, shape: tuple[int, ...], weight: Any = None, eps: float | None = None) -> Tensor:
    only(len(shape) == 1 and (eps is None or eps > 0))
    return ops.rms_norm(x, weight, eps=torch.finfo(x.dtype).eps if eps is None else eps)


def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    only(eps > 0)
    return ops.group_norm(x, groups, weight, bias, eps=eps)


def interpolate(x: Tensor, size: Any = None, **kwargs: Any) -> Tensor:
    only(x.ndim == 4 and isinstance(size, tuple) and kwargs["mode"] in ("nearest", "bilinear"))
    return ops.resize2d(x, size, mode=kwargs["mode"], align_corners=bool(kwargs["align_corners"]))


def embedding(weight: Tensor, indices: Tensor, **kwargs: Any) -> Tensor:
    only("max_norm" not in kwargs)  # which changes the weight
    return ops.embedding(indices, weight)


def silu(x: Tensor) -> Tensor:
    only(x.ndim > 0)
    return batched(x, max(x.ndim, 2), lambda x: ops.bias_act(x, act="silu"))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    only(x.ndim > 1)
    return ops.bias_act(x, act="gelu_tanh" if approximate == "tanh" else "gelu")


OURS = {
    "nn.functional.linear": linear,
    "nn.functional.conv1d": conv1d,
    "nn.functional.conv2d": conv2d,
    "nn.functional.conv_transpose1d": conv_transpose1d,
    "nn.functional.conv_transpose2d": conv_transpose2d,
    "nn.functional.scaled_dot_product_attention": attention,
    "nn.functional.layer_norm": layer_norm,
    "nn.functional.rms_norm": rms_norm,
    "nn.functional.group_norm": group_norm,
    "nn.functional.interpolate": interpolate,
    "nn.functional.embedding": embedding,
    "nn.functional.silu": silu,
    "nn.functional.gelu": gelu,
}
FOUND = [
    info for info in op_db if info.name in OURS and info.variant_test_name in ("", "nearest", "bilinear")
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("info", FOUND, ids=lambda info: f"{info.name}{info.variant_test_name}"[14:])
def test_native_kernels_take_torchs_samples(info: Any, dtype: torch.dtype, isa_level: str) -> None:
    torch.manual_seed(0)
    used = 0
    for sample in info.sample_inputs("cpu", dtype):
        inputs, kwargs = map_tensors(((sample.input, *sample.args), sample.kwargs), Tensor.detach)
        if OURS[info.name] is attention:
            # Drawn from [-9, 9]: scores of some hundreds, whose own rounding decides what softmax gives.
            inputs = (inputs[0] / 9, *inputs[1:])
        try:
            with use_backend("native"):
                got = OURS[info.name](*inputs, **kwargs)
        except Beyond:
            continue
        wide = to_float64(inputs), to_float64(kwargs)
        failure = parity_failure(got, info.op(*inputs, **kwargs), info.op(*wide[0], **wide[1]))
        assert failure is None, f"{[getattr(x, 'shape', x) for x in inputs]} {kwargs}: {failure}"
        used += 1
    assert used >= 2
