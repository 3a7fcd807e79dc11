"""Arguments of accelerated modules: what is refused, and how graphs take the rest."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine.dispatch import UnsupportedError
from aigc_engine.graph.structure import Structure

NUMBERS = {int: torch.int64, float: torch.float64}
SAME = 1e-5  # relative: a float64 tensor may be computed with where a float was rounded to float32


def check_module(module: nn.Module) -> None:
    """All of it on the CPU and in eval mode."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"accelerate: {name} on {tensor.device}, expected cpu; move the module")
    for name, part in module.named_modules():
        if part.training:
            raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call eval()")


def check(module: nn.Module, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
    """What plans can't serve in a call."""
    name = type(module).__name__
    if module.training:
        raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call {name}.eval()")
    if torch.is_autocast_enabled("cpu"):
        raise UnsupportedError(
            "accelerate: inside torch.autocast, expected outside; accelerate(dtype=) instead"
        )
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.device.type != "cpu":
            where = _argument(leaves, spec, index)
            raise UnsupportedError(f"accelerate: {where} on {leaf.device}, expected cpu; move it")
        if leaf.requires_grad and torch.is_grad_enabled():
            where = _argument(leaves, spec, index)
            raise UnsupportedError(f"accelerate: {where} requires a gradient, expected none; detach() it")


def by_keyword(bound: inspect.BoundArguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All that can be given by keyword: what wraps a forward may look for some of it there."""
    parameters = bound.signature.parameters
    kinds = {name: parameters[name].kind for name in bound.arguments}
    if any(kinds[name] is inspect.Parameter.VAR_POSITIONAL and bound.arguments[name] for name in kinds):
        return bound.args, bound.kwargs
    named = {n: v for n, v in bound.arguments.items() if kinds[n] is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return bound.args[: len(bound.args) - len(named)], {**named, **bound.kwargs}


def as_tensor(leaf: Any) -> Any:
    """A Python number as a tensor without axes."""
    return torch.tensor(leaf, dtype=NUMBERS[type(leaf)]) if type(leaf) in NUMBERS else leaf


def is_fraction(leaf: Any) -> bool:
    """Whether this is a Python number that's no whole one."""
    return type(leaf) is float and not leaf.is_integer()


def reads_fractions(module: nn.Module, leaves: Sequence[Any], spec: pytree.TreeSpec) -> bool:
    """Whether fractions mean to a module what tensors of them do: some round the one and not the other."""
    with torch.no_grad(), Structure(module).restored():
        results = []
        for given in (leaves, [as_tensor(leaf) if is_fraction(leaf) else leaf for leaf in leaves]):
            args, kwargs = pytree.tree_unflatten(list(given), spec)
            try:
                results.append(pytree.tree_flatten(module(*args, **kwargs)))
            except (TypeError, RuntimeError):
                return False
    (a, one), (b, other) = results
    return one == other and all(map(_same, a, b))


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and a == b
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return torch.equal(a, b)
    return bool((a.double() - b.double()).norm() <= SAME * a.double().norm())


def _argument(leaves: Sequence[Any], spec: pytree.TreeSpec, index: int) -> str:
    """Where in the arguments a leaf is."""
    marked = pytree.tree_unflatten([i == index for i in range(len(leaves))], spec)
    path = next(path for path, found in pytree.tree_leaves_with_path(marked) if found)
    return f"argument {pytree.keystr(path[1:])}"
