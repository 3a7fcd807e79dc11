"""Rearrangements as views, so that at most one copy is made where someone needs it."""

from __future__ import annotations

from typing import Any

from torch import fx

from aigc_engine.graph.passes.edit import aten, call, calls, erase_dead, forward, insert, normal, sizes


def use_views(graph: fx.Graph) -> None:
    """pixel_shuffle, pixel_unshuffle, stack, repeat_interleave, and einsum where it only permutes."""
    for node in calls(graph, aten.pixel_shuffle.default):
        x, factor = node.args
        if len(sizes(x)) == 4:
            cut = call(node, aten.unflatten.int, x, 1, [-1, factor, factor])
            turned = call(node, aten.permute.default, cut, [0, 1, 4, 2, 5, 3])
            rows = call(node, aten.flatten.using_ints, turned, 2, 3)
            forward(node, call(node, aten.flatten.using_ints, rows, 3, 4))
    for node in calls(graph, aten.pixel_unshuffle.default):
        x, factor = node.args
        if len(sizes(x)) == 4:
            cut = call(node, aten.unflatten.int, x, 3, [-1, factor])
            cut = call(node, aten.unflatten.int, cut, 2, [-1, factor])
            turned = call(node, aten.permute.default, cut, [0, 1, 3, 5, 2, 4])
            forward(node, call(node, aten.flatten.using_ints, turned, 1, 3))
    for node in calls(graph, aten.stack.default):
        found = normal(node)
        axis = found["dim"] % node.meta["val"].ndim
        parts = [call(node, aten.unsqueeze.default, part, axis) for part in found["tensors"]]
        forward(node, call(node, aten.cat.default, parts, axis))
    for node in calls(graph, aten.repeat_interleave.self_int):
        found = normal(node)
        if found["dim"] is not None:
            axis = found["dim"] % node.meta["val"].ndim
            forward(node, repeated(node, found["self"], axis, found["repeats"]))
    for node in calls(graph, aten.einsum.default):
        axes = _permutation(*node.args[:2])
        if axes is not None:
            forward(node, call(node, aten.permute.default, node.args[1][0], axes))
    erase_dead(graph)


def repeated(before: fx.Node, x: fx.Node, axis: int, times: Any) -> fx.Node:
    """x with each element along an axis so many times."""
    shape: list[Any] = [-1] * (len(sizes(x)) + 1)
    shape[axis + 1] = times
    rows = call(before, aten.expand.default, call(before, aten.unsqueeze.default, x, axis + 1), shape)
    return call(before, aten.flatten.using_ints, rows, axis, axis + 1)


def use_flat_convolutions(graph: fx.Graph) -> None:
    """conv_transpose1d with a height of 1; conv3d along the first axis only, the other two as one."""
    for node in calls(graph, aten.conv_transpose1d.default):
        found = normal(node)
        x, weight = found["input"], found["weight"]
        if len(sizes(x)) != 3:
            continue
        x, weight = (call(node, aten.unsqueeze.default, value, 2) for value in (x, weight))
        stride, dilation = [1, *found["stride"]], [1, *found["dilation"]]
        padding, more = [0, *found["padding"]], [0, *found["output_padding"]]
        args = x, weight, found["bias"], stride, padding, more, found["groups"], dilation
        forward(node, call(node, aten.squeeze.dim, call(node, aten.conv_transpose2d.input, *args), 2))
    for node in calls(graph, aten.conv3d.default):
        found = normal(node)
        x, weight = found["input"], found["weight"]
        if len(sizes(x)) != 5 or sizes(weight)[3:] != (1, 1) or _moves(found):
            continue
        height, width = (_size(node, x, axis) for axis in (3, 4))
        flat, weight = call(node, aten.flatten.using_ints, x, 3, 4), call(node, aten.squeeze.dim, weight, 4)
        stride, padding, dilation = (
            [found[n][0], rest] for n, rest in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        layout = stride, padding, dilation, found["groups"]
        result = call(node, aten.conv2d.default, flat, weight, found["bias"], *layout)
        forward(node, call(node, aten.unflatten.int, result, 3, [height, width]))
    erase_dead(graph)


def _moves(found: dict[str, Any]) -> bool:
    """Whether a conv3d has strides or padding along its last two axes."""
    return any(step != 1 for step in found["stride"][1:]) or any(pad != 0 for pad in found["padding"][1:])


def _size(before: fx.Node, x: fx.Node, axis: int) -> fx.Node:
    return insert(before, aten.sym_size.int, (x, axis), {}, x.meta["val"].shape[axis])


def _permutation(equation: str, operands: list[fx.Node]) -> list[int] | None:
    """The axes of an einsum that only permutes its one operand."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    if len(operands) != 1 or not arrow or not before.isalpha() or len(set(before)) != len(before):
        return None
    return [before.index(axis) for axis in after] if sorted(before) == sorted(after) else None
