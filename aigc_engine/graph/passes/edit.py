"""What the passes ask of a graph, and how they change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from aigc_engine.graph.constants import repeatable
from aigc_engine.graph.traced import expression

aten = torch.ops.aten
CASTS = (aten._to_copy.default, aten.to.dtype)


def calls(graph: fx.Graph, *targets: Any) -> list[fx.Node]:
    """The graph's calls of any of these functions, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def is_call(value: Any, *targets: Any) -> bool:
    """Whether a node calls one of these functions."""
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target in targets


def only_user(node: fx.Node) -> fx.Node | None:
    """The one call that reads this node, once; None where there are others."""
    users = list(node.users)
    if (
        len(users) != 1
        or users[0].op != "call_function"
        or sum(read is node for read in _reads(users[0])) != 1
    ):
        return None
    return users[0]


def _reads(node: fx.Node) -> list[fx.Node]:
    """What a node reads, as often as it does."""
    found: list[fx.Node] = []

    def note(read: fx.Node) -> fx.Node:
        found.append(read)
        return read

    fx.map_arg((node.args, node.kwargs), note)
    return found


def sizes(node: fx.Node) -> tuple[Any, ...]:
    """Symbolic sizes of a node's tensor."""
    return tuple(map(expression, node.meta["val"].shape))


def dtype(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype


def is_tensor(value: Any) -> bool:
    """Whether this is a node that gives a tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def of_sizes(graph: fx.Graph) -> set[fx.Node]:
    """Calls that follow from sizes alone, or from nothing."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        fixed = node.target is aten.sym_size.int or found.issuperset(node.all_input_nodes)
        if node.op == "call_function" and fixed and repeatable(node):
            found.add(node)
    return found


def alike(a: Any, b: fx.Node) -> bool:
    """Whether a is a tensor of b's sizes and dtype."""
    return is_tensor(a) and sizes(a) == sizes(b) and dtype(a) == dtype(b)


def normal(node: fx.Node) -> dict[str, Any]:
    """All arguments of an aten call by name, defaults included."""
    found = {}
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        found[argument.name] = value
    for argument in node.target._schema.arguments:
        if argument.name not in found:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def insert(before: fx.Node, target: Any, args: Sequence[Any], kwargs: dict[str, Any], value: Any) -> fx.Node:
    """A new call before a node; `value` is its fake result."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, tuple(args), kwargs)
    node.meta["val"] = value
    return node


def call(before: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new call before a node; what it gives is found on the fakes."""
    found = fx.map_arg(args, lambda node: node.meta["val"])
    return insert(before, target, args, {}, target(*found))


def replace(node: fx.Node, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> fx.Node:
    """A call in the place of another, with the same result."""
    new = insert(node, target, args, kwargs, node.meta.get("val"))
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def forward(node: fx.Node, value: fx.Node) -> None:
    """Everyone who reads `node` reads `value` instead."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def erase_dead(graph: fx.Graph) -> None:
    """Removes calls that nobody reads."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
