"""`accelerate`: a live module whose calls run as native plans."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine import capability, native
from aigc_engine.dispatch import UnsupportedError
from aigc_engine.graph.capture import Capture, capture
from aigc_engine.graph.constants import Constants
from aigc_engine.graph.fuse import fuse
from aigc_engine.graph.lower import RankError, lower
from aigc_engine.graph.plan import Plan
from aigc_engine.ops.packed import PRECISIONS, use_precision

NUMBERS = {int: torch.int64, float: torch.float64}
MOST_SHAPES = 16  # whose plans are kept, by latest use: each plan holds an arena


class StrictError(UnsupportedError):
    """Nodes are left to torch, which strict=True doesn't allow."""


@dataclass
class _Graph:
    """A fused graph with what it takes from the module."""

    capture: Capture
    constants: Constants


@dataclass
class _Shape:
    """Plans for one kind of arguments, those that no call is using."""

    graph: _Graph
    symbols: dict[Any, int]
    free: list[Plan] = field(default_factory=list)


class Accelerated:
    """What `accelerate` returns: called like the module, whose attributes it has."""

    def __init__(self, module: nn.Module, precision: str | None, strict: bool) -> None:
        self._module = module
        self._precision = precision
        self._strict = strict
        self._signature = inspect.signature(module.forward)
        self._lock = threading.RLock()
        self._numbers_fixed = False
        self._warned = False
        self._drop()

    def _drop(self) -> None:
        self._graphs: list[_Graph] = []
        self._shapes: OrderedDict[Any, _Shape] = OrderedDict()
        self._latest: Plan | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "_module":
            raise AttributeError(name)
        return getattr(self._module, name)

    def __repr__(self) -> str:
        return f"accelerate({self._module!r})"

    def restore(self) -> nn.Module:
        """The module itself; plans and packed weights are dropped."""
        with self._lock:
            self._drop()
        return self._module

    def explain(self) -> str:
        """The plan of the latest call: its nodes, who runs each, and why some are left to torch.

        Raises:
            RuntimeError: nothing was called yet.
        """
        return str(self._plan_of_latest("explain"))

    def profile(self, *args: Any, **kwargs: Any) -> list[tuple[str, str, float, float]]:
        """Runs one call; (node, what it is, seconds, GFLOP/s) of each node, in order."""
        leaves, spec = self._flat(args, kwargs)
        with self._plan(leaves, spec) as (plan, _, leaves), torch.no_grad():
            times = plan.times(leaves)
        return [
            (
                call.name,
                call.what + (", torch" if call.reason else ""),
                spent,
                call.flops / max(spent, 1e-9) / 1e9,
            )
            for call, spent in times
        ]

    def _plan_of_latest(self, name: str) -> Plan:
        if self._latest is None:
            raise RuntimeError(
                f"{name}: nothing was called yet, expected a call first; plans are made for calls"
            )
        return self._latest

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = self._flat(args, kwargs)
        with self._plan(leaves, spec) as (plan, graph, leaves), torch.no_grad():
            results = plan.run(leaves)
        return pytree.tree_unflatten(results, graph.capture.out_spec)

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        leaves, spec = pytree.tree_flatten((bound.args, bound.kwargs))
        self._check(leaves, spec)
        return leaves, spec

    def _check(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
        name = type(self._module).__name__
        if self._module.training:
            raise ValueError(
                f"accelerate: {name} is in training mode, expected eval mode; call {name}.eval()"
            )
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

    @contextmanager
    def _plan(self, given: Sequence[Any], spec: pytree.TreeSpec) -> Iterator[tuple[Plan, _Graph, list[Any]]]:
        """A plan for these arguments that no other call is using, and the arguments as it takes them."""
        with self._lock, torch.no_grad(), use_precision(self._precision):
            self._follow()
            shape = self._shape(given, spec)
            leaves = self._numbers_as_tensors(given)
            plan = shape.free.pop() if shape.free else self._lower(shape, leaves)
            self._latest = plan
        try:
            yield plan, shape.graph, leaves
        finally:
            shape.free.append(plan)

    def _follow(self) -> None:
        """Follows changes of the module's tensors."""
        if not all(graph.constants.refresh() for graph in self._graphs):
            self._graphs, self._shapes = [], OrderedDict()  # a tensor was replaced

    def _shape(self, given: Sequence[Any], spec: pytree.TreeSpec) -> _Shape:
        key = self._key(given, spec)
        found = self._shapes.get(key)
        if found is None:
            found = self._new_shape(given, spec)
            self._shapes[self._key(given, spec)] = found
            if len(self._shapes) > MOST_SHAPES:
                self._shapes.popitem(last=False)
        else:
            self._shapes.move_to_end(key)
        return found

    def _key(self, given: Sequence[Any], spec: pytree.TreeSpec) -> Any:
        precision = self._precision or torch.get_float32_matmul_precision()
        leaves = tuple(
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
            for leaf in self._numbers_as_tensors(given)
        )
        return spec, leaves, native.threads(), native.isa(), precision

    def _numbers_as_tensors(self, given: Sequence[Any]) -> list[Any]:
        """Python's numbers as tensors without axes, unless the module needs to see them."""
        if self._numbers_fixed:
            return list(given)
        return [
            torch.tensor(leaf, dtype=NUMBERS[type(leaf)]) if type(leaf) in NUMBERS else leaf for leaf in given
        ]

    def _new_shape(self, given: Sequence[Any], spec: pytree.TreeSpec) -> _Shape:
        """A shape with its first plan, from a graph that holds for it."""
        for graph in self._graphs:
            shape = self._planned(graph, given, spec)
            if shape is not None:
                return shape
        if not self._numbers_fixed and any(type(leaf) in NUMBERS for leaf in given):
            try:
                return self._captured(given, spec, fixed=False)
            except StrictError:
                raise
            except UnsupportedError:
                self._numbers_fixed = True
        try:
            return self._captured(given, spec, fixed=False)
        except StrictError:
            raise
        except UnsupportedError:
            return self._captured(given, spec, fixed=True)

    def _captured(self, given: Sequence[Any], spec: pytree.TreeSpec, *, fixed: bool) -> _Shape:
        """The same from a new graph, whose sizes are fixed or not."""
        self._check_module()
        found = capture(self._module, self._numbers_as_tensors(given), spec, fixed=fixed)
        fuse(found)
        graph = _Graph(found, Constants(self._module, found))
        shape = self._planned(graph, given, spec)
        if shape is None:
            name = type(self._module).__name__
            raise UnsupportedError(
                f"accelerate: {name}'s code takes another way for these sizes than for others"
            )
        self._graphs.append(graph)
        return shape

    def _planned(self, graph: _Graph, given: Sequence[Any], spec: pytree.TreeSpec) -> _Shape | None:
        """The same from a graph, None where that doesn't hold for these arguments."""
        leaves = self._numbers_as_tensors(given)
        symbols = graph.capture.symbols(leaves, spec)
        if symbols is None:
            return None
        shape = _Shape(graph, symbols)
        try:
            shape.free.append(self._lower(shape, leaves))
        except RankError:  # traced at sizes for which the code took another way
            return None
        return shape

    def _check_module(self) -> None:
        for name, tensor in (*self._module.named_parameters(), *self._module.named_buffers()):
            if tensor.device.type != "cpu":
                raise UnsupportedError(
                    f"accelerate: {name} on {tensor.device}, expected cpu; move the module"
                )
        for name, module in self._module.named_modules():
            if module.training:
                raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call eval()")

    def _lower(self, shape: _Shape, leaves: Sequence[Any]) -> Plan:
        plan = lower(shape.graph.capture, shape.graph.constants, leaves, shape.symbols)
        left = [call for call in plan.calls if call.reason]
        names = [f"{call.name} ({call.what} {call.shape}: {call.reason})" for call in left]
        if left and self._strict:
            raise StrictError(f"accelerate: left to torch: {'; '.join(names)}; strict=False allows it")
        if left and not self._warned:
            self._warned = True
            warnings.warn(
                f"accelerate: {len(left)} of {len(plan.calls)} nodes run through torch, such as {names[0]}; "
                "explain() lists them",
                RuntimeWarning,
                stacklevel=9,
            )
        return plan


def _argument(leaves: Sequence[Any], spec: pytree.TreeSpec, index: int) -> str:
    """Where in the arguments a leaf is."""
    marked = pytree.tree_unflatten([i == index for i in range(len(leaves))], spec)
    path = next(path for path, found in pytree.tree_leaves_with_path(marked) if found)
    return f"argument {pytree.keystr(path[1:])}"


def accelerate(module: nn.Module, *, precision: str | None = None, strict: bool = False) -> Accelerated:
    """Runs a module's calls as native plans: same arguments, same results.

    The module is captured once, for all shapes, when it's first called; each new shape of arguments then
    makes a plan, in which neighbouring layers are fused, weights are packed, and all values lie in one block
    of memory. Weights that are changed in place, loaded or replaced are noticed at the next call. Several
    threads may call at once.

    Args:
        module: in eval mode, on the CPU, without data-dependent control flow. It's left as it is.
        precision: of float32 products, as `ops.pack_linear` says; None: torch.get_float32_matmul_precision().
        strict: raises where a node is left to torch; otherwise one warning says so.

    Returns:
        A callable with the module's attributes; `explain()` lists the latest plan, `profile(...)` times a
        call's nodes, `restore()` gives the module back.

    Precision: as the ops say: products as `precision`, all else in float32 and rounded once. A sample's bits
        don't depend on its batch as far as nodes are native.

    Memory: packed weights once; for each shape (the latest 16) an arena, whose size `explain()` says.

    Raises:
        TypeError: not a module.
        ValueError: training mode, or unknown precision.
        UnsupportedError: at the call: a module that can't be captured, or tensors elsewhere than on the CPU.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"accelerate: module {type(module).__name__}, expected a torch.nn.Module")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"accelerate: precision {precision!r}, expected one of {list(PRECISIONS)}, or None")
    if capability.native_missing() is not None:
        raise UnsupportedError(f"accelerate: {capability.native_missing()}")
    if module.training:
        name = type(module).__name__
        raise ValueError(f"accelerate: {name} is in training mode, expected eval mode; call eval()")
    return Accelerated(module, precision, strict)
