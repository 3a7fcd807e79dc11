"""aten's layers as our ops, with what they can do beside: group_norm and silu, layer_norm and adaLN."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from aigc_engine import ops
from aigc_engine.graph.passes.edit import (
    CASTS,
    aten,
    call,
    calls,
    dtype,
    erase_dead,
    forward,
    insert,
    is_call,
    is_tensor,
    normal,
    only_user,
    replace,
    sizes,
)
from aigc_engine.graph.passes.views import repeated
from aigc_engine.ops.embedding import INDICES

MOST_REPEATS = 8  # of a frame, for a size that is a multiple


def use_norms(graph: fx.Graph) -> None:
    """aten's group_norm, layer_norm and rms_norm."""
    for node in calls(graph, aten.group_norm.default):
        found = normal(node)
        args = (found["input"], found["num_groups"], found["weight"], found["bias"])
        replace(node, ops.group_norm, args, {"eps": found["eps"]})
    for node in calls(graph, aten.layer_norm.default):
        found = normal(node)
        if len(found["normalized_shape"]) == 1:
            replace(
                node, ops.layer_norm, (found["input"], found["weight"], found["bias"]), {"eps": found["eps"]}
            )
    for node in calls(graph, aten.rms_norm.default):
        found = normal(node)
        if len(found["normalized_shape"]) == 1 and found["eps"] is not None:
            replace(node, ops.rms_norm, (found["input"], found["weight"]), {"eps": found["eps"]})


def use_normalize(graph: fx.Graph) -> None:
    """x / max(|x|, eps) along one axis, as F.normalize makes it, by rms_norm: 1 / sqrt(C) of it.

    rms_norm adds eps^2 / C to the mean of squares. That changes no bit of float32 where |x| > 1e4 eps.
    """
    for node in calls(graph, aten.div.Tensor):
        x, norm = node.args
        if is_call(norm, aten.expand.default, aten.expand_as.default):
            norm = norm.args[0]
        if not is_call(norm, aten.clamp_min.default, aten.clamp.default):
            continue
        least, length = norm.args[1], norm.args[0]
        if not is_call(length, aten.linalg_vector_norm.default) or length.args[0] is not x:
            continue
        found = normal(length)
        axes, axis = len(sizes(x)), found["dim"]
        if found["ord"] != 2 or not found["keepdim"] or found["dtype"] or axis is None or len(axis) != 1:
            continue
        axis = axis[0] % axes
        width = sizes(x)[axis]
        if type(width) is not int or type(least) is not float or len(norm.args) > 2:
            continue
        order = [i for i in range(axes) if i != axis] + [axis]
        back = [order.index(i) for i in range(axes)]
        rows = call(node, aten.permute.default, x, order)
        made = insert(node, ops.rms_norm, (rows, None), {"eps": least**2 / width}, rows.meta["val"])
        forward(node, call(node, aten.mul.Tensor, call(node, aten.permute.default, made, back), width**-0.5))
    erase_dead(graph)


def join_rms_norm(graph: fx.Graph) -> None:
    """x / sqrt(mean(x^2) + eps), as T5 and its kin spell it, with the weight that comes after."""
    for node in calls(graph, aten.rsqrt.default):
        found, scaled = _root_mean_square(node), only_user(node)
        if found is None or not is_call(scaled, aten.mul.Tensor):
            continue
        x, eps = found
        if _uncast(_other(scaled, node)) is not x:
            continue
        user = only_user(scaled)
        last = user if is_call(user, *CASTS) and dtype(user) == dtype(x) else scaled
        user, weight = only_user(last), None
        if is_call(user, aten.mul.Tensor) and dtype(user) == dtype(x):
            weight = _other(user, last)
            weighted = is_tensor(weight) and (sizes(weight), dtype(weight)) == (sizes(x)[-1:], dtype(x))
            last, weight = (user, weight) if weighted else (last, None)
        if dtype(last) == dtype(x) and sizes(last) == sizes(x):
            replace(last, ops.rms_norm, (x, weight), {"eps": eps})
    erase_dead(graph)


def _root_mean_square(root: fx.Node) -> tuple[fx.Node, float] | None:
    """x and eps of rsqrt(mean(x^2) + eps) over the last axis."""
    added = root.args[0]
    if not is_call(added, aten.add.Tensor) or added.kwargs or type(added.args[1]) not in (int, float):
        return None
    mean, eps = added.args
    if not is_call(mean, aten.mean.dim) or eps < 0:
        return None
    found = normal(mean)
    squared = found["self"]
    axes = [axis % len(sizes(squared)) for axis in found["dim"] or ()]
    if axes != [len(sizes(squared)) - 1] or not found["keepdim"] or found["dtype"] is not None:
        return None
    squares = is_call(squared, aten.square.default, aten.pow.Tensor_Scalar)
    if not squares or squared.args[1:] not in ((), (2,)):
        return None
    return _uncast(squared.args[0]), float(eps)


def _uncast(value: Any) -> Any:
    """What was widened to float32, or the value itself."""
    wide = is_call(value, *CASTS) and dtype(value) == torch.float32
    return value.args[0] if wide and dtype(value.args[0]) == torch.bfloat16 else value


def join_group_norm_silu(graph: fx.Graph) -> None:
    """silu after group_norm."""
    for node in calls(graph, ops.group_norm):
        user = only_user(node)
        if user is not None and is_call(user, aten.silu.default):
            replace(user, ops.group_norm_silu, node.args, dict(node.kwargs))
            graph.erase_node(node)


def join_adaptive_layer_norm(graph: fx.Graph) -> None:
    """layer_norm(x) * (1 + scale) + shift, scale and shift one for each sample."""
    for node in calls(graph, ops.layer_norm):
        scaled = only_user(node)
        if scaled is not None and is_call(scaled, aten.mul.Tensor):
            scale = _one_plus(_other(scaled, node))
            if _per_sample(scale, node):
                node = _take(node, scaled, scale=scale)
        shifted = only_user(node)
        if shifted is not None and is_call(shifted, aten.add.Tensor) and not shifted.kwargs:
            shift = _other(shifted, node)
            if _per_sample(shift, node):
                _take(node, shifted, shift=shift)
    erase_dead(graph)


def _take(norm: fx.Node, user: fx.Node, **more: Any) -> fx.Node:
    new = replace(user, ops.layer_norm, norm.args, {**norm.kwargs, **more})
    norm.graph.erase_node(norm)
    return new


def _other(node: fx.Node, one: fx.Node) -> Any:
    """The second operand."""
    a, b = node.args[:2]
    return b if a is one else a


def _one_plus(node: Any) -> Any:
    """scale of 1 + scale."""
    if not is_call(node, aten.add.Tensor) or node.kwargs:
        return None
    a, b = node.args
    if type(b) in (int, float) and b == 1:
        return a
    return b if type(a) in (int, float) and a == 1 else None


def _per_sample(value: Any, norm: fx.Node) -> bool:
    """Whether this broadcasts over all but the first and the last axis of the result."""
    if not is_tensor(value) or dtype(value) != dtype(norm):
        return False
    batch, *middle, width = sizes(norm)
    return sizes(value) == (batch, *[1] * len(middle), width)


def use_flat_resize(graph: fx.Graph) -> None:
    """Nearest resizing of video: of each frame, and by a whole factor along them."""
    for node in calls(graph, aten.upsample_nearest3d.vec):
        found = normal(node)
        x, size, factors = found["input"], found["output_size"], found["scale_factors"]
        if size is not None:
            times = next((n for n in range(1, MOST_REPEATS + 1) if sizes(node)[2] == n * sizes(x)[2]), 0)
        else:
            times = int(factors[0]) if factors[0] == int(factors[0]) else 0
        if times < 1:
            continue
        batch, frames = (insert(node, aten.sym_size.int, (x, i), {}, x.meta["val"].shape[i]) for i in (0, 2))
        images = call(node, aten.flatten.using_ints, call(node, aten.transpose.int, x, 1, 2), 0, 1)
        if size is None:
            images = call(node, aten.upsample_nearest2d.vec, images, None, factors[1:])
        else:
            value = node.meta["val"][:, :, ::times].transpose(1, 2).flatten(0, 1)
            images = insert(node, ops.resize2d, (images, list(size[1:])), {"mode": "nearest"}, value)
        y = call(node, aten.transpose.int, call(node, aten.unflatten.int, images, 0, [batch, frames]), 1, 2)
        if times > 1:
            y = repeated(node, y, 2, times)
        forward(node, y)
    erase_dead(graph)


def use_resize(graph: fx.Graph) -> None:
    """Nearest and bilinear resizing, to a size or by whole factors, for which nearest-exact is nearest."""
    for node in calls(graph, aten._upsample_nearest_exact2d.vec):
        if normal(node)["output_size"] is None:
            node.target = aten.upsample_nearest2d.vec
    for node in calls(graph, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec):
        found = normal(node)
        x, size, factors = found["input"], found["output_size"], found["scale_factors"]
        if size is None:
            if factors is None or any(factor != int(factor) or factor < 1 for factor in factors):
                continue
            size = [_times(node, x, axis + 2, int(factor)) for axis, factor in enumerate(factors)]
        options: dict[str, Any] = {"mode": "nearest"}
        if node.target is aten.upsample_bilinear2d.vec:
            options = {"mode": "bilinear", "align_corners": found["align_corners"]}
        replace(node, ops.resize2d, (x, size), options)


def _times(before: fx.Node, x: fx.Node, axis: int, factor: int) -> fx.Node:
    """The size of an axis times a factor."""
    shape = x.meta["val"].shape
    size = insert(before, aten.sym_size.int, (x, axis), {}, shape[axis])
    return insert(before, operator.mul, (size, factor), {}, shape[axis] * factor)


def use_embedding(graph: fx.Graph) -> None:
    """Rows of a table by number; what padding_idx and the like say is for gradients."""
    for node in calls(graph, aten.embedding.default):
        found = normal(node)
        if dtype(found["indices"]) in INDICES:
            replace(node, ops.embedding, (found["indices"], found["weight"]), {})


def use_attention(graph: fx.Graph) -> None:
    """scaled_dot_product_attention, whose operands keep their strides."""
    for node in calls(graph, aten.scaled_dot_product_attention.default):
        found = normal(node)
        q, k, v, mask = (found[name] for name in ("query", "key", "value", "attn_mask"))
        if found["dropout_p"] or len(sizes(q)) != 4 or any(len(sizes(x)) != 4 for x in (k, v)):
            continue
        if sizes(q)[3] != sizes(v)[3] or sizes(k)[1] != sizes(v)[1]:
            continue
        if sizes(k)[1] != sizes(q)[1] and not found["enable_gqa"]:
            continue
        if mask is not None and len(sizes(mask)) != 4:
            continue
        options = {"mask": mask, "causal": found["is_causal"], "scale": found["scale"]}
        replace(node, ops.attention, (q, k, v), options)
