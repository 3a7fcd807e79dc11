"""Captured graphs in a file: JSON in the header of a safetensors file, whose tensors are the graphs' own."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from aigc_engine import ops
from aigc_engine.dispatch import Op
from aigc_engine.graph.capture import Capture, Source, signature_of
from aigc_engine.graph.traced import Traced

FORMAT = 2
TORCH = ".".join(torch.__version__.split(".")[:2])  # a release's graphs hold for its patches and builds
_MODULES = {"math": math, "operator": operator, "torch": torch}
SIZES = {f"math.{name}" for name in ("ceil", "floor", "trunc")}
SIZES |= {f"torch.sym_{name}" for name in ("float", "int", "ite", "max", "min", "not")}
SIZES |= {f"operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg")}
SIZES |= {f"operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")}
FILES = {"from_file"}  # reads and writes them
ATTRIBUTES = {"size", "shape", "stride", "ndim", "ceil", "floor", "trunc", "sqrt"}
ATTRIBUTES |= {name.removeprefix("torch.") for name in SIZES if name.startswith("torch.")}
NAMES = {"L", "math", "torch", "max", "min", "abs", "int", "float"}
ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Constant,
    ast.Subscript,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
_TORCH_KINDS = (torch.dtype, torch.device, torch.memory_format, torch.layout)


def save(
    path: str | Path, module: nn.Module, captures: Sequence[Capture], options: Mapping[str, Any]
) -> None:
    """Writes graphs that were fused; `options` are returned by `load`."""
    tensors: dict[str, Tensor] = {}
    graphs = [_graph(found, f"{index}.", tensors) for index, found in enumerate(captures)]
    header = {"format": FORMAT, "torch": TORCH, "module": type(module).__name__}
    text = json.dumps({**header, "options": dict(options), "graphs": graphs})
    part = Path(path).with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"aigc_engine": text})
    part.replace(path)


def load(path: str | Path, module: nn.Module) -> tuple[list[Capture], dict[str, Any]]:
    """What `save` wrote, for a module of the same class whose tensors have the same shapes.

    Raises:
        ValueError: another kind of file, a damaged one, other versions, or another module.
    """
    try:
        return _load(path, module)
    except (SafetensorError, SyntaxError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"accelerate: saved {path} is damaged ({error!r}); save it again") from None


def _load(path: str | Path, module: nn.Module) -> tuple[list[Capture], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("aigc_engine")
        if text is None:
            raise ValueError(f"accelerate: saved {path}, expected a file that save() wrote")
        found = json.loads(text)
        for name, wanted in (
            ("format", FORMAT),
            ("torch", TORCH),
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
        "branches": list(found.branches),
        "casts": {name: str(dtype).removeprefix("torch.") for name, dtype in found.casts.items()},
    }


def _capture(found: dict[str, Any], prefix: str, tensors: Mapping[str, Tensor], module: nn.Module) -> Capture:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for op, name, target, args, kwargs, value in found["nodes"]:
        node = graph.create_node(op, _function(target), _unpack(args, nodes), _unpack(kwargs, nodes), name)
        nodes[name] = node
        if value is not None:
            dtype, shape, strides = value
            shape, strides = (tuple(map(_expression, sizes)) for sizes in (shape, strides))
            node.meta["val"] = Traced(getattr(torch, dtype), shape, strides)
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
    signature = signature_of(module)
    guards, branches = (list(map(_expression, found[name])) for name in ("guards", "branches"))
    return Capture(
        graph, sources, inputs, taken, signature, in_spec, out_spec, ranges, guards, branches, casts
    )


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
    """The function of this name: one of ours, of aten's without side effects, or arithmetic on sizes.

    A file names nothing else, so that reading and running it does no more than compute.
    """
    if name.startswith("="):
        return name[1:]
    first, *rest = name.split(".")
    if first == "ops" and len(rest) == 1 and isinstance(getattr(ops, rest[0], None), Op):
        return getattr(ops, rest[0])
    if name.startswith("torch.ops.aten.") and len(rest) == 4:
        found = getattr(getattr(torch.ops.aten, rest[2], None), rest[3], None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable and rest[2] not in FILES:
            return found
    if name in SIZES:
        return getattr(_MODULES[first], rest[0])
    raise ValueError(f"accelerate: saved calls {name!r}, expected an op of ours or of aten's; save it again")


def _expression(text: Any) -> Any:
    """A size or a guard as `capture` writes them: it's evaluated, so arithmetic and nothing else."""
    if not isinstance(text, str):
        return text
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Attribute):
            allowed = node.attr in ATTRIBUTES
        elif isinstance(node, ast.Name):
            allowed = node.id in NAMES or re.fullmatch(r"[su]\d+", node.id) is not None
        elif isinstance(node, ast.Call):
            allowed = isinstance(node.func, (ast.Attribute, ast.Name)) and not node.keywords
        else:
            allowed = isinstance(node, ARITHMETIC)
        if not allowed:
            raise ValueError(f"accelerate: saved has {text!r}, expected arithmetic over sizes; save it again")
    return text


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
