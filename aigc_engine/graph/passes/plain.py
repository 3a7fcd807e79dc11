"""Calls that say in other words what plainer ones do."""

from __future__ import annotations

from typing import Any

from torch import fx

from aigc_engine.graph.passes.clean import WHOLE
from aigc_engine.graph.passes.edit import (
    alike,
    aten,
    call,
    calls,
    dtype,
    erase_dead,
    forward,
    is_call,
    normal,
    only_user,
    replace,
    sizes,
)


def use_plain(graph: fx.Graph) -> None:
    """type_as, writes over all or every other element of something, padding with what is at the edge."""
    for node in calls(graph, aten.type_as.default):
        _cast(node, node.args[0])
    for node in calls(graph, aten.copy.default):
        if sizes(node.args[1]) == sizes(node):
            _cast(node, node.args[1])
    for node in calls(graph, aten.slice_scatter.default):
        if alike(node.args[1], node) and normal(node)["step"] == 1:
            forward(node, node.args[1])
    erase_dead(graph)
    for node in calls(graph, aten.slice_scatter.default):
        _interleave(node)
    for node in calls(
        graph, aten.pad.default, aten.replication_pad2d.default, aten.replication_pad3d.default
    ):
        _repeat_edges(node)
    erase_dead(graph)


def _cast(node: fx.Node, value: fx.Node) -> None:
    if dtype(value) == dtype(node):
        forward(node, value)
    else:
        replace(node, aten.to.dtype, (value, dtype(node)), {})


def _interleave(node: fx.Node) -> None:
    """Two values written to the even and the odd places of an axis, as rotary embeddings do."""
    first = node.args[0]
    if not is_call(first, aten.slice_scatter.default) or only_user(first) is not node:
        return
    even, odd = normal(first), normal(node)
    axes = len(sizes(node))
    axis = odd["dim"] % axes
    length = sizes(node)[axis]
    if even["dim"] % axes != axis or type(length) is not int or length % 2:
        return
    if not (_every_other(even, 0, length) and _every_other(odd, 1, length)):
        return
    pairs = call(node, aten.stack.default, [even["src"], odd["src"]], axis + 1)
    forward(node, call(node, aten.flatten.using_ints, pairs, axis, axis + 1))


def _every_other(found: dict[str, Any], start: int, length: int) -> bool:
    end = found["end"]
    whole = end is None or (type(end) is int and end >= length)
    return (found["start"] or 0) == start and found["step"] == 2 and whole


def _repeat_edges(node: fx.Node) -> None:
    """mode="replicate", axis by axis: what is at the edge is a view that repeats it."""
    found = normal(node)
    x: fx.Node = found["self"]
    pads = list(found["pad"] if "pad" in found else found["padding"])
    if found.get("mode", "replicate") != "replicate" or not all(type(p) is int and p >= 0 for p in pads):
        return
    for i in range(0, len(pads), 2):
        axis = len(sizes(x)) - 1 - i // 2
        first = _edge(node, x, axis, 0, 1, pads[i])
        last = _edge(node, x, axis, -1, WHOLE, pads[i + 1])
        parts = [part for part in (first, x, last) if part is not None]
        if len(parts) > 1:
            x = call(node, aten.cat.default, parts, axis)
    forward(node, x)


def _edge(before: fx.Node, x: fx.Node, axis: int, start: int, end: int, times: int) -> fx.Node | None:
    if times == 0:
        return None
    shape = [times if i == axis else -1 for i in range(len(sizes(x)))]
    return call(before, aten.expand.default, call(before, aten.slice.Tensor, x, axis, start, end), shape)
