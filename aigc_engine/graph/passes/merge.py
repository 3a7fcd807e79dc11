"""Several products of one input as one: query, key and value; what all blocks take of a time embedding."""

from __future__ import annotations

import torch
from torch import fx

from aigc_engine import ops
from aigc_engine.graph.passes.edit import aten, calls, dtype, erase_dead, forward, insert, is_call, sizes

CUTS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.transpose.int,
    aten.permute.default,
)


def merge_linears(graph: fx.Graph, static: set[fx.Node]) -> None:
    """Linear layers of one input whose results are only looked at in parts: one product, and views of it."""
    _static_first(graph, static)
    groups: dict[tuple[object, ...], list[fx.Node]] = {}
    for node in calls(graph, ops.linear):
        source, weight, bias = node.args
        plain = not node.kwargs and weight in static and (bias is None or bias in static)
        if plain and all(is_call(user, *CUTS) for user in node.users):
            groups.setdefault((source, bias is None, dtype(weight)), []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            _merge(nodes)
    erase_dead(graph)


def _static_first(graph: fx.Graph, static: set[fx.Node]) -> None:
    """What follows from parameters alone before all else, so that any layer can read it."""
    start = next(node for node in graph.nodes if node.op != "placeholder" and node not in static)
    for node in [node for node in graph.nodes if node.op == "call_function" and node in static]:
        start.prepend(node)


def _merge(nodes: list[fx.Node]) -> None:
    first = nodes[0]
    widths = [sizes(node)[-1] for node in nodes]
    weights, biases = [node.args[1] for node in nodes], [node.args[2] for node in nodes]
    weight = _joined(first, weights)
    bias = None if biases[0] is None else _joined(first, biases)
    wide = torch.cat([node.meta["val"] for node in nodes], dim=-1)
    whole = insert(first, ops.linear, (first.args[0], weight, bias), {}, wide)
    parts, start = [], 0
    for node, width in zip(nodes, widths, strict=True):
        parts.append(
            insert(first, aten.slice.Tensor, (whole, -1, start, start + width), {}, node.meta["val"])
        )
        start += width
    for node, part in zip(nodes, parts, strict=True):
        forward(node, part)


def _joined(before: fx.Node, parts: list[fx.Node]) -> fx.Node:
    return insert(before, aten.cat.default, (parts,), {}, torch.cat([part.meta["val"] for part in parts]))
