"""What others make of a module for the CPU, each from its documentation, with the threads that we have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine import native

# A module in eval mode with a call's arguments, to a function that makes the call.
Rival = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Callable[[], Any]]


def compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """torch.compile with frozen weights.

    Reference: https://docs.pytorch.org/tutorials/intermediate/inductor_debug_cpu.html
    """
    import torch._inductor.config as config

    config.freezing = True
    torch._dynamo.reset()
    fast = torch.compile(model)

    def run() -> Any:
        with torch.no_grad():
            return fast(*args, **kwargs)

    return run


class _Flat(nn.Module):
    """A module that takes tensors by place and returns one: what converters understand."""

    def __init__(self, model: nn.Module, leaves: list[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.model, self.leaves, self.spec = model, leaves, spec

    def forward(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        out = self.model(*args, **kwargs)
        return next(value for value in pytree.tree_leaves(out) if isinstance(value, Tensor))


def openvino(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """OpenVINO with fixed shapes, in the precision of the module.

    Reference: https://docs.openvino.ai/2026/openvino-workflow/model-preparation/convert-model-pytorch.html
    """
    import openvino as ov

    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    low = any(t.dtype == torch.bfloat16 for t in (*tensors, *model.parameters()))
    flat = _Flat(model.float(), leaves, spec).eval()  # precision is set when it's compiled
    wide = tuple(t.float() if t.is_floating_point() else t for t in tensors)
    with torch.no_grad():
        converted = ov.convert_model(flat, example_input=wide, input=[tuple(t.shape) for t in wide])
    if low:
        model.bfloat16()
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
        "INFERENCE_NUM_THREADS": native.threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(converted, "CPU", options).create_infer_request()
    arrays = [t.numpy() for t in wide]

    def run() -> Tensor:
        (result,) = request.infer(arrays, share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(result)

    return run


PEERS: dict[str, Rival] = {"torch.compile": compiled, "openvino": openvino}
