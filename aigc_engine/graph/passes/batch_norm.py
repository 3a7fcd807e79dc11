"""Batch norm in eval mode: a factor and a summand for each channel, which the weights before it can take."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from aigc_engine import ops
from aigc_engine.graph.passes.edit import aten, calls, erase_dead, insert, is_call, normal, only_user, sizes

ARGUMENTS = ("input", "weight", "bias", "running_mean", "running_var", "eps")
# Of the weight.
CHANNEL_AXIS = {ops.conv1d: 0, ops.conv2d: 0, ops.conv3d: 0, ops.conv_transpose2d: 1, ops.linear: 0}


def fold_batch_norm(graph: fx.Graph, static: set[fx.Node]) -> None:
    """Into the product before it where its weight is static, else x * factor + summand.

    References:
        S. Ioffe, C. Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167 (section 3.1)
    """
    for norm in calls(graph, aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default):
        found = normal(norm)
        x, weight, bias, mean, variance, eps = (found[name] for name in ARGUMENTS)
        readers = list(norm.users)
        if norm.target is not aten.batch_norm.default:
            used = {user.args[1] for user in readers if is_call(user, operator.getitem)}
            if used != {0}:
                continue
        if (
            found.get("training")
            or mean is None
            or not static.issuperset(v for v in (weight, bias, mean, variance) if v is not None)
        ):
            continue
        factor, summand = _affine(norm, weight, bias, mean, variance, eps)
        if _foldable(x, norm, static):
            result = _fold(x, norm, factor, summand)
        else:
            result = _multiply_add(norm, x, factor, summand)
        for user in readers if norm.target is not aten.batch_norm.default else [norm]:
            user.replace_all_uses_with(result)
    erase_dead(graph)


def _affine(
    norm: fx.Node, weight: Any, bias: Any, mean: Any, variance: Any, eps: float
) -> tuple[fx.Node, fx.Node]:
    """(C,) in float32: weight / sqrt(variance + eps), and bias - mean times that."""
    like = mean.meta["val"]

    def call(target: Any, *args: Any) -> fx.Node:
        return insert(norm, target, args, {}, like)

    factor = call(aten.rsqrt.default, call(aten.add.Tensor, variance, eps))
    if weight is not None:
        factor = call(aten.mul.Tensor, factor, weight)
    summand = call(aten.neg.default, call(aten.mul.Tensor, mean, factor))
    return factor, summand if bias is None else call(aten.add.Tensor, summand, bias)


def _foldable(x: fx.Node, norm: fx.Node, static: set[fx.Node]) -> bool:
    if not is_call(x, *CHANNEL_AXIS) or only_user(x) is not norm or not static.issuperset(_weights(x)):
        return False
    if x.target is ops.linear and len(sizes(x)) != 2:
        return False
    return not set(x.kwargs) - {"stride", "padding", "output_padding", "dilation", "groups"}


def _weights(x: fx.Node) -> list[fx.Node]:
    return [value for value in x.args[1:3] if isinstance(value, fx.Node)]


def _fold(x: fx.Node, norm: fx.Node, factor: fx.Node, summand: fx.Node) -> fx.Node:
    """x with weight * factor, and bias * factor + summand."""
    source, weight, bias = x.args
    axis, axes = CHANNEL_AXIS[x.target], len(sizes(weight))
    shape = [-1 if i == axis else 1 for i in range(axes)]
    with torch.no_grad():
        wide = factor.meta["val"].reshape(shape)
    scaled = insert(
        norm,
        aten.mul.Tensor,
        (weight, insert(norm, aten.view.default, (factor, shape), {}, wide)),
        {},
        weight.meta["val"],
    )
    if bias is not None:
        product = insert(norm, aten.mul.Tensor, (bias, factor), {}, bias.meta["val"])
        summand = insert(norm, aten.add.Tensor, (product, summand), {}, bias.meta["val"])
    return insert(norm, x.target, (source, scaled, summand), dict(x.kwargs), x.meta["val"])


def _multiply_add(norm: fx.Node, x: fx.Node, factor: fx.Node, summand: fx.Node) -> fx.Node:
    shape = [-1 if axis == 1 else 1 for axis in range(len(sizes(x)))]
    wide = factor.meta["val"].reshape(shape)
    factor, summand = (insert(norm, aten.view.default, (v, shape), {}, wide) for v in (factor, summand))
    scaled = insert(norm, aten.mul.Tensor, (x, factor), {}, x.meta["val"])
    return insert(norm, aten.add.Tensor, (scaled, summand), {}, x.meta["val"])
