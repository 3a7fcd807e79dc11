"""Removes what does nothing, and what is done twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from aigc_engine.graph.constants import repeatable
from aigc_engine.graph.passes.edit import (
    alike,
    aten,
    calls,
    dtype,
    erase_dead,
    forward,
    is_call,
    is_tensor,
    normal,
    replace,
    sizes,
)

# Each layout holds the same values, and plans choose their own.
COPIES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout)
ASSERTIONS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
TIMES_ONE = (aten.mul.Tensor, aten.div.Tensor)
WHOLE = 2**62


def remove_dead(graph: fx.Graph) -> None:
    """Copies, casts to what a value is already, dropout in eval mode, factors of 1, slices of everything."""
    for node in calls(graph, aten.concat.default):
        node.target = aten.cat.default
    for node in calls(graph, *ASSERTIONS):
        graph.erase_node(node)
    for node in calls(graph, *COPIES, aten.dropout.default):
        if node.target is not aten.dropout.default or not normal(node)["train"]:
            forward(node, node.args[0])
    for node in calls(graph, *CASTS):
        if is_tensor(node.args[0]) and dtype(node.args[0]) == dtype(node):
            forward(node, node.args[0])
    for node in calls(graph, *TIMES_ONE):
        if type(node.args[1]) in (int, float) and node.args[1] == 1 and alike(node.args[0], node):
            forward(node, node.args[0])
    for node in calls(graph, aten.mul.Tensor):
        _expand_instead(node)
    for node in calls(graph, aten.slice.Tensor):
        found = normal(node)
        end = found["end"]
        if not found["start"] and found["step"] == 1 and (end is None or (type(end) is int and end >= WHOLE)):
            forward(node, node.args[0])
    for node in calls(
        graph, aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default
    ):
        if alike(node.args[0], node):
            forward(node, node.args[0])
    erase_dead(graph)


def _expand_instead(node: fx.Node) -> None:
    """x * ones(sizes), by which diffusers repeats a timestep, as a view."""
    for value, ones in (node.args, node.args[::-1]):
        if (
            is_call(ones, aten.ones.default)
            and is_tensor(value)
            and dtype(value) == dtype(node) == dtype(ones)
        ):
            if sizes(ones) == sizes(node):
                replace(node, aten.expand.default, (value, ones.args[0]), {})
            return


def merge_equal(graph: fx.Graph) -> None:
    """Computes once what several nodes compute alike."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not repeatable(node):
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            forward(node, first)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    assert not isinstance(value, Tensor)
    return value if isinstance(value, fx.Node) else (type(value), repr(value))  # 0.0 and -0.0 differ


def undo_transposes(graph: fx.Graph) -> None:
    """A transpose of the same transpose is where one began."""
    for node in calls(graph, aten.transpose.int):
        inner = node.args[0]
        if isinstance(inner, fx.Node) and inner.target is aten.transpose.int:
            axes = {axis % node.meta["val"].ndim for axis in node.args[1:]}
            if axes == {axis % node.meta["val"].ndim for axis in inner.args[1:]}:
                forward(node, inner.args[0])
    erase_dead(graph)
