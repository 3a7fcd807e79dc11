"""Captured graphs in a file: JSON in the header of a safetensors file, whose tensors are the graphs' own."""

from __future__ import annotations

import importlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from aigc_engine import ops
from aigc_engine.dispatch import Op
from aigc_engine.graph.capture import Capture, Source, signature_of
from aigc_engine.graph.traced import Traced

FORMAT = 1
_MODULES = {"math": math, "operator": operator, "torch": torch}
_TORCH_KINDS = (torch.dtype, torch.device, torch.memory_format, torch.layout)


def save(
    path: str | Path, module: nn.Module, captures: Sequence[Capture], options: Mapping[str, Any]
) -> None:
    """Writes graphs that were fused; `options` are returned by `load`."""
    tensors: dict[str, Tensor] = {}
    graphs = [_graph(found, f"{index}.", tensors) for index, found in enumerate(captures)]
    header = {"format": FORMAT, "torch": torch.__version__, "module": type(module).__name__}
    text = json.dumps({**header, "options": dict(options), "graphs": graphs})
    part = Path(path).with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"aigc_engine": text})
    part.replace(path)


def load(path: str | Path, module: nn.Module) -> tuple[list[Capture], dict[str, Any]]:
    """What `save` wrote, for a module of the same class whose tensors have the same shapes.

    Raises:
        ValueError: another kind of file, other versions, or another module.
    """
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("aigc_engine")
        if text is None:
            raise ValueError(f"accelerate: saved {path}, expected a file that save() wrote")
        found = json.loads(text)
        for name, wanted in (
            ("format", FORMAT),
            ("torch", torch.__version__),
            ("module", type(module).__name__),
        ):
            if found[name] != wanted:
                raise ValueError(
                    f"accelerate: saved {name} {found[name]!r}, expected {wanted!r}; save it again"
                )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    captures = [_capture(graph, f"{i}.", tensors, module) for i, graph in enumerate(found["graphs"])]
    return captures, found["options"]


def _graph(found: Capture, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for name, at in found.sources.items():
        if at.value is not None:
            tensors[prefix + name] = at.value.detach()
    return {
        "nodes": [
            [node.op, node.name, _target(node), _pack(node.args), _pack(node.kwargs), _value(node)]
            for node in found.graph.nodes
        ],
        "sources": {name: at.name for name, at in found.sources.items()},
        "inputs": [node.name for node in found.inputs],
        "taken": [None if isinstance(taken, Traced) else [taken] for taken in found.taken],
        "specs": [pytree.treespec_dumps(spec) for spec in (found.in_spec, found.out_spec)],
        "ranges": found.ranges,
        "guards": list(found.guards),
        "casts": {name: str(dtype).removeprefix("torch.") for name, dtype in found.casts.items()},
    }


def _capture(found: dict[str, Any], prefix: str, tensors: Mapping[str, Tensor], module: nn.Module) -> Capture:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for op, name, target, args, kwargs, value in found["nodes"]:
        node = graph.create_node(op, _function(target), _unpack(args, nodes), _unpack(kwargs, nodes), name)
        nodes[name] = node
        if value is not None:
            dtype, shape, strides = value
            node.meta["val"] = Traced(getattr(torch, dtype), tuple(shape), tuple(strides))
    sources = {
        nodes[name].name: Source(attribute, tensors.get(prefix + name))
        for name, attribute in found["sources"].items()
    }
    for node in graph.nodes:
        if node.name in sources and sources[node.name].value is None:
            _check(module, sources[node.name].name, node.meta["val"])
    inputs = [nodes[name] for name in found["inputs"]]
    taken = [
        node.meta["val"] if kept is None else kept[0]
        for node, kept in zip(inputs, found["taken"], strict=True)
    ]
    in_spec, out_spec = map(pytree.treespec_loads, found["specs"])
    ranges = {symbol: (low, high) for symbol, (low, high) in found["ranges"].items()}
    casts = {nodes[name].name: getattr(torch, dtype) for name, dtype in found["casts"].items()}
    signature, guards = signature_of(module), found["guards"]
    return Capture(graph, sources, inputs, taken, signature, in_spec, out_spec, ranges, guards, casts)


def _check(module: nn.Module, name: str, wanted: Traced) -> None:
    path, _, key = name.rpartition(".")
    try:
        tensor = getattr(module.get_submodule(path), key)
    except AttributeError:
        raise ValueError(f"accelerate: saved for a module with {name}, which this one hasn't") from None
    if (tensor.dtype, tuple(tensor.shape)) != (wanted.dtype, wanted.shape):
        raise ValueError(
            f"accelerate: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {wanted.dtype} "
            f"{wanted.shape} as when it was saved"
        )


def _value(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return None if value is None else [str(value.dtype).removeprefix("torch."), value.shape, value.strides]


def _target(node: fx.Node) -> str:
    """A function's name, from which `_function` finds it."""
    target = node.target
    if node.op != "call_function":
        return f"={target}"
    if isinstance(target, Op):
        return f"ops.{target.name}"
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    module = getattr(target, "__module__", "torch").lstrip("_")
    return f"{module}.{target.__name__}"


def _function(name: str) -> Any:
    if name.startswith("="):
        return name[1:]
    first, *rest = name.split(".")
    if first == "ops":
        return getattr(ops, rest[0])
    found = _MODULES.get(first) or importlib.import_module(first)
    for part in rest:
        found = getattr(found, part)
    return found


def _pack(value: Any) -> Any:
    """An argument as JSON: [kind, what]."""
    if isinstance(value, fx.Node):
        return ["node", value.name]
    if isinstance(value, _TORCH_KINDS):
        return ["torch", type(value).__name__, str(value).removeprefix("torch.")]
    if isinstance(value, dict):
        return ["dict", {name: _pack(item) for name, item in value.items()}]
    if isinstance(value, (list, tuple)):
        return ["tuple" if isinstance(value, tuple) else "list", [_pack(item) for item in value]]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["is", value]
    raise TypeError(f"save: a node with an argument {value!r}, expected numbers, names, dtypes and nodes")


def _unpack(packed: Any, nodes: Mapping[str, fx.Node]) -> Any:
    kind, value = packed[:2]
    if kind == "node":
        return nodes[value]
    if kind == "torch":
        return torch.device(packed[2]) if value == "device" else getattr(torch, packed[2])
    if kind == "dict":
        return {name: _unpack(item, nodes) for name, item in value.items()}
    if kind in ("list", "tuple"):
        items = [_unpack(item, nodes) for item in value]
        return tuple(items) if kind == "tuple" else items
    return value
