"""aten's linear layers and convolutions as our ops, and what goes before and after them in one call."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from torch import fx

from aigc_engine import ops
from aigc_engine.graph.passes import views
from aigc_engine.graph.passes.edit import (
    alike,
    aten,
    calls,
    dtype,
    erase_dead,
    is_call,
    is_tensor,
    normal,
    only_user,
    replace,
    sizes,
)

CONVOLUTIONS = (ops.conv1d, ops.conv2d, ops.conv3d, ops.conv_transpose2d)
PRODUCTS = (ops.linear, *CONVOLUTIONS)
ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
}


def use_products(graph: fx.Graph) -> None:
    """aten's linear, convolutions and conv_transpose2d."""
    for node in calls(graph, aten.linear.default):
        found = normal(node)
        if len(sizes(found["weight"])) == 2:
            replace(node, ops.linear, (found["input"], found["weight"], found["bias"]), {})
    for node in calls(graph, aten.addmm.default):
        found = normal(node)
        weight = found["mat2"]
        plain = found["beta"] == found["alpha"] == 1 and len(sizes(found["self"])) == 1
        if plain and is_call(weight, aten.t.default):
            replace(node, ops.linear, (found["mat1"], weight.args[0], found["self"]), {})
    for node in calls(graph, aten.conv1d.default, aten.conv1d.padding):
        _use_convolution(node, ops.conv1d, 1)
    views.use_flat_convolutions(graph)
    for node in calls(graph, aten.conv2d.default, aten.conv2d.padding):
        _use_convolution(node, ops.conv2d, 2)
    for node in calls(graph, aten.conv3d.default, aten.conv3d.padding):
        _use_convolution(node, ops.conv3d, 3)
    for node in calls(graph, aten.conv_transpose2d.input):
        found = normal(node)
        if len(sizes(found["input"])) == 4 and found["groups"] == 1 and set(found["dilation"]) == {1}:
            options = {
                "stride": _pair(found["stride"]),
                "padding": _pair(found["padding"]),
                "output_padding": _pair(found["output_padding"]),
            }
            replace(node, ops.conv_transpose2d, (found["input"], found["weight"], found["bias"]), options)
    erase_dead(graph)


def _pair(value: list[int]) -> tuple[int, ...]:
    return tuple(value) * (2 if len(value) == 1 else 1)


def _use_convolution(node: fx.Node, op: Any, axes: int) -> None:
    found = normal(node)
    x, weight = found["input"], found["weight"]
    if len(sizes(x)) != axes + 2:
        return
    taps = sizes(weight)[2:]
    stride, dilation = (
        tuple(found[name]) * (axes if len(found[name]) == 1 else 1) for name in ("stride", "dilation")
    )
    padding = found["padding"]
    if padding == "valid":
        padding = (0,) * axes
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
        if any(r % 2 for r in reach):
            return
        padding = tuple(r // 2 for r in reach)
    else:
        padding = tuple(padding) * (axes if len(padding) == 1 else 1)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": found["groups"]}
    if axes == 3 and (options.pop("groups") != 1 or set(options.pop("dilation")) != {1}):
        return
    if axes == 1:
        options |= {name: options[name][0] for name in ("stride", "padding", "dilation")}
    replace(node, op, (x, weight, found["bias"]), options)


def join_before(graph: fx.Graph) -> None:
    """Convolutions of what is padded with zeros; of pixels enlarged by nearest neighbours or concatenated."""
    for node in calls(graph, ops.conv3d):
        _join_padding(node, 3)
    for node in calls(graph, ops.conv2d):
        for join in (partial(_join_padding, axes=2), _join_upsample, _join_concat):
            node = join(node)
    erase_dead(graph)


def _join_padding(node: fx.Node, axes: int) -> fx.Node:
    x = node.args[0]
    if not is_call(x, aten.constant_pad_nd.default, aten.pad.default) or any(node.kwargs["padding"]):
        return node
    found = normal(x)
    pads, value = found["pad"], found.get("value")
    if found.get("mode", "constant") != "constant" or value not in (None, 0) or len(pads) != 2 * axes:
        return node
    if not all(type(pad) is int and pad >= 0 for pad in pads):
        return node
    return replace(
        node, node.target, (found["self"], *node.args[1:]), {**node.kwargs, "padding": tuple(pads)}
    )


def _join_upsample(node: fx.Node) -> fx.Node:
    x = node.args[0]
    if not is_call(x, aten.upsample_nearest2d.vec) or only_user(x) is None:
        return node
    found = normal(x)
    factors = found["scale_factors"]
    if found["output_size"] is not None or factors is None or factors[0] != factors[1]:
        return node
    if factors[0] != int(factors[0]) or factors[0] < 1:
        return node
    options = {**node.kwargs, "upsample": int(factors[0])}
    return replace(node, ops.conv2d, (found["input"], *node.args[1:]), options)


def _join_concat(node: fx.Node) -> fx.Node:
    """Only where no one else needs the two together."""
    x = node.args[0]
    if not is_call(x, aten.cat.default) or node.kwargs["groups"] != 1 or "upsample" in node.kwargs:
        return node
    found = normal(x)
    parts = found["tensors"]
    if len(parts) != 2 or found["dim"] not in (1, -3) or any(dtype(p) != dtype(node) for p in parts):
        return node
    if not all(is_call(user, ops.conv2d) and user.args[0] is x for user in x.users):
        return node
    return replace(node, ops.conv2d, (parts[0], *node.args[1:]), {**node.kwargs, "concat": parts[1]})


def join_after(graph: fx.Graph) -> None:
    """Activation, time embedding, gate and residual after a product."""
    for node in calls(graph, *PRODUCTS):
        while (user := only_user(node)) is not None:
            more = _taken(node, user)
            if more is None:
                break
            new = replace(user, node.target, node.args, {**node.kwargs, **more})
            graph.erase_node(node)
            node = new
    erase_dead(graph)


def _taken(node: fx.Node, user: fx.Node) -> dict[str, Any] | None:
    """The option by which a product does what its user does, or None."""
    done = node.kwargs
    if not is_tensor(user) or dtype(user) != dtype(node):
        return None
    if "residual" not in done and "gate" not in done and "act" not in done:
        found = _activation(user)
        if found is not None:
            return found
        bias = _channel_bias(node, user)
        if bias is not None:
            return {"channel_bias": bias}
    if (
        is_call(user, aten.mul.Tensor)
        and node.target is ops.linear
        and not {"gate", "residual"} & done.keys()
    ):
        gate = _operand(user, node)
        if alike(gate, node) or _one_per_sample(gate, node):
            return {"gate": gate}
    if is_call(user, aten.add.Tensor) and not user.kwargs and "residual" not in done:
        residual = _operand(user, node)
        if alike(residual, node):
            return {"residual": residual}
    return None


def _operand(user: fx.Node, node: fx.Node) -> Any:
    a, b = user.args[:2]
    return b if a is node else a


def _activation(user: fx.Node) -> dict[str, Any] | None:
    if user.target in ACTIVATIONS:
        return {"act": ACTIVATIONS[user.target]}
    if is_call(user, aten.gelu.default):
        return {"act": "gelu_tanh" if normal(user)["approximate"] == "tanh" else "gelu"}
    if is_call(user, aten.leaky_relu.default):
        return {"act": "leaky_relu", "slope": float(normal(user)["negative_slope"])}
    return None


def _channel_bias(node: fx.Node, user: fx.Node) -> fx.Node | None:
    """c (B, C) of node + c[:, :, None, None]."""
    if node.target is not ops.conv2d or not is_call(user, aten.add.Tensor) or user.kwargs:
        return None
    if "channel_bias" in node.kwargs:
        return None
    added = _operand(user, node)
    for _ in range(2):
        if not is_call(added, aten.unsqueeze.default):
            return None
        axis, ndim = added.args[1], len(sizes(added))
        if axis % ndim != ndim - 1 and not (ndim == 4 and axis % ndim == 2):
            return None
        added = added.args[0]
    batch, channels, *_ = sizes(node)
    if not is_tensor(added) or sizes(added) != (batch, channels) or dtype(added) != dtype(node):
        return None
    return added


def _one_per_sample(gate: Any, node: fx.Node) -> bool:
    """(B, 1, ..., N) beside (B, ..., N)."""
    if not is_tensor(gate) or dtype(gate) != dtype(node):
        return False
    batch, *middle, width = sizes(node)
    return sizes(gate) == (batch, *[1] * len(middle), width)


def join_gated(graph: fx.Graph) -> None:
    """A linear layer whose halves gate each other: a * gelu(b) or silu(a) * b."""
    for node in calls(graph, aten.mul.Tensor):
        for name, halves in _gated(node):
            linear = _halved(*halves)
            if linear is not None:
                replace(node, ops.linear, linear.args, {"act": name})
                break
    erase_dead(graph)


def _gated(node: fx.Node) -> list[tuple[str, tuple[Any, Any]]]:
    """Ways in which a product is a gated unit: its name, and the halves in order."""
    found = []
    for value, gate in (node.args[:2], node.args[1::-1]):
        if (
            is_call(gate, aten.gelu.default)
            and normal(gate)["approximate"] == "none"
            and only_user(gate) is node
        ):
            found.append(("geglu", (value, gate.args[0])))
        if is_call(gate, aten.silu.default) and only_user(gate) is node:
            found.append(("swiglu", (gate.args[0], value)))
    return found


def _halved(first: Any, second: Any) -> fx.Node | None:
    """The plain linear layer of whose last axis these are the two halves, and that nobody else reads."""
    if not (is_call(first, operator.getitem) and is_call(second, operator.getitem)):
        return None
    whole = first.args[0]
    if second.args[0] is not whole or (first.args[1], second.args[1]) != (0, 1):
        return None
    if not is_call(whole, aten.chunk.default, aten.split.Tensor) or set(whole.users) != {first, second}:
        return None
    if only_user(first) is None or only_user(second) is None:
        return None
    found, linear = normal(whole), whole.args[0]
    width = sizes(linear)[-1]
    parts = found["chunks"] == 2 if whole.target is aten.chunk.default else found["split_size"] * 2 == width
    last = found["dim"] in (-1, len(sizes(linear)) - 1)
    plain = is_call(linear, ops.linear) and not linear.kwargs and only_user(linear) is whole
    return linear if parts and last and plain and type(width) is int and width % 32 == 0 else None
