"""What lowering asks about nodes and the values that it holds for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from aigc_engine import ops
from aigc_engine.dispatch import Op
from aigc_engine.ops import checks
from aigc_engine.ops.pointwise import MOST_AXES
from aigc_engine.packed import PackedWeight


def ancestors(outputs: Sequence[Any]) -> set[fx.Node]:
    """These nodes and all that they follow from."""
    found: set[fx.Node] = set()
    waiting = [node for node in outputs if isinstance(node, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def last_users(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Of each node, what none after it reads."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for read in node.all_input_nodes:
            last[read] = node
    found: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, user in last.items():
        found[user].append(node)
    return found


def items_read(node: fx.Node) -> set[int]:
    """Which results of several are used."""
    return {user.args[1] for user in node.users}


def shares(args: Any, value: Any) -> bool:
    """Whether all tensors of a result are memory of the arguments'."""
    known = {t.untyped_storage().data_ptr() for t in tensors_in(args)}
    return all(t.untyped_storage().data_ptr() in known for t in tensors_in(value))


def may_view(node: fx.Node) -> bool:
    """Whether a node's result can be memory of its argument's, or is an item of a list."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True  # operator.getitem
    return any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def makes_tensors(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any("Tensor" in str(r.type) for r in schema.returns)


def tensors_in(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def map_values(value: Any, fn: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map_values(item, fn) for item in value)
    if isinstance(value, dict):
        return {key: map_values(item, fn) for key, item in value.items()}
    return fn(value)


def as_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def described(value: Any) -> str:
    value = value[0] if isinstance(value, (tuple, list)) else value
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def copies_natively(source: Tensor, target: Tensor) -> bool:
    """Whether the pointwise kernel copies this."""
    return {source.dtype, target.dtype} <= checks.FLOATS and source.ndim <= MOST_AXES


def options_of(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a fused op does besides: its steps, its activation, and the operands that were other nodes."""
    if op is ops.pointwise:
        return " " + ", ".join(step[0] for step in args[0]) if args[0] else " copy"
    shown = [
        f"int8 ({100 * arg.error:.2f} % off)"
        for arg in args
        if isinstance(arg, PackedWeight) and arg.product == "int8"
    ]
    shown += [str(kwargs["act"])] if kwargs.get("act", "none") != "none" else []
    shown += [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    return "".join(f" + {name}" for name in shown)


def name_of(target: Any) -> str:
    return (
        target.name()
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", str(target))
    )
