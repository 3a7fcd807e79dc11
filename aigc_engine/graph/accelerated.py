"""A live module whose calls run as native plans."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from aigc_engine import native
from aigc_engine.dispatch import UnsupportedError, chosen_backends, tracing
from aigc_engine.graph import arguments, saved
from aigc_engine.graph.arguments import NUMBERS, as_tensor, by_keyword, is_fraction, reads_fractions
from aigc_engine.graph.capture import Capture, RankError, Sizes, capture, traceable
from aigc_engine.graph.constants import Constants
from aigc_engine.graph.fuse import cast_sources, fuse
from aigc_engine.graph.held import Held
from aigc_engine.graph.offload import Offloaded
from aigc_engine.graph.options import Options
from aigc_engine.graph.plan import Plan
from aigc_engine.graph.profile import Profile
from aigc_engine.graph.structure import Structure
from aigc_engine.packed import use_precision

DEFAULT = Options()
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
    symbols: dict[str, int]
    free: list[Plan] = field(default_factory=list)


class Accelerated:
    """What `accelerate` returns: called like the module, whose attributes it has.

    Args:
        options: as `accelerate` says.
        patient: whether a module that can't be captured runs as it is, with a warning.
        quiet: no warning of nodes that are left to torch, for whoever explains that otherwise.
    """

    def __init__(
        self,
        module: nn.Module,
        options: Options = DEFAULT,
        patient: bool = False,
        quiet: bool = False,
    ) -> None:
        self._module = module
        self._options = options
        self._patient = patient
        self._patched = _own_forward(module)
        with self._bare():
            self._forward = module.forward
        self._signature = self.__signature__ = inspect.signature(self._forward)
        self._lock = threading.RLock()
        self._numbers_fixed = False
        self._rounds: bool | None = None  # whether the module rounds Python's numbers; None: not known yet
        self._warned = quiet
        self._refused = ""
        self._offloaded = None if options.offload is None else Offloaded(module, options.offload)
        self._drop()

    @classmethod
    def shared(cls, module: nn.Module, options: Options) -> Accelerated:
        """Of a pipeline's network: what another pipeline installed with these options, or a new one."""
        found = module.__dict__.get("forward")
        same = isinstance(found, cls) and found._options == options
        return found if same else cls(module, options, patient=True)

    def install(self) -> None:
        """From now on the module itself runs as plans."""
        self._module.__dict__["forward"] = self

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The module with its own forward, which is the method that torch.export wants."""
        installed = self._module.__dict__.get("forward")
        self._uninstall()
        try:
            yield
        finally:
            if installed is not None:
                self._module.__dict__["forward"] = installed

    def _uninstall(self) -> None:
        self._module.__dict__.pop("forward", None)
        if self._patched is not None:
            self._module.__dict__["forward"] = self._patched

    def _drop(self) -> None:
        self._graphs: list[_Graph] = []
        self._shapes: OrderedDict[Any, _Shape] = OrderedDict()
        self._latest: Plan | None = None
        self._structure: Structure | None = None  # as it was at the latest capture

    def _constants(self, found: Capture) -> Constants:
        return Constants(self._module, found, self._offloaded)

    def __getattr__(self, name: str) -> Any:
        if name == "_module":
            raise AttributeError(name)
        return getattr(self._module, name)

    def __repr__(self) -> str:
        return f"accelerate({self._module!r})"

    @property
    def module(self) -> nn.Module:
        """What runs as plans."""
        return self._module

    def restore(self) -> nn.Module:
        """The module itself; plans and packed weights are dropped."""
        with self._lock:
            self._drop()
            if self._offloaded is not None:
                self._offloaded.restore(self._module)
        if self._module.__dict__.get("forward") is self:
            self._uninstall()
        return self._module

    @property
    def called(self) -> bool:
        """Whether there's anything to explain."""
        return bool(self._refused) or self._latest is not None

    def explain(self) -> str:
        """The plan of the latest call: its nodes, who runs each, and why some are left to torch.

        Raises:
            RuntimeError: nothing was called yet.
        """
        if self._refused:
            return f"runs as it is: {self._refused}"
        return str(self._plan_of_latest("explain"))

    def save(self, path: str | Path) -> None:
        """Writes what was captured, for `accelerate(module, saved=path)`: the graphs, not the weights.

        Raises:
            RuntimeError: nothing was called yet.
        """
        self._plan_of_latest("save")
        options = {"numbers_fixed": self._numbers_fixed, "dtype": str(self._options.dtype)}
        saved.save(path, self._module, [graph.capture for graph in self._graphs], options)

    def load(self, path: str | Path) -> None:
        """Takes over what `save` wrote of an equal module."""
        captures, options = saved.load(path, self._module)
        if options["dtype"] != str(self._options.dtype):
            raise ValueError(
                f"accelerate: saved dtype {options['dtype']}, expected {self._options.dtype}; save it again"
            )
        self._numbers_fixed = options["numbers_fixed"]
        self._graphs = [_Graph(found, self._constants(found)) for found in captures]
        self._structure = Structure(self._module)

    def profile(self, *args: Any, **kwargs: Any) -> Profile:
        """Runs one call, after another that warms up, and says how long each node took."""
        given, spec = self._flat(args, kwargs)
        with self._plan(given, spec) as (plan, graph, leaves), torch.no_grad():
            plan.run(leaves, graph.constants.changes)
            return Profile(plan.times(leaves, graph.constants.changes))

    def _plan_of_latest(self, name: str) -> Plan:
        if self._latest is None:
            raise RuntimeError(
                f"{name}: nothing was called yet, expected a call first; plans are made for calls"
            )
        return self._latest

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._refused or tracing():
            return self._forward(*args, **kwargs)
        given, spec = self._flat(args, kwargs)
        try:
            with self._plan(given, spec) as (plan, graph, leaves), torch.no_grad():
                results = plan.run(leaves, graph.constants.changes)
        except UnsupportedError as error:
            if not self._patient or isinstance(error, StrictError):
                raise
            self._refused = str(error)
            warnings.warn(f"{error}; it runs as it is", RuntimeWarning, stacklevel=2)
            return self._forward(*args, **kwargs)
        return pytree.tree_unflatten(results, graph.capture.out_spec)

    @contextmanager
    def held(self, *args: Any, **kwargs: Any) -> Iterator[Held]:
        """The plan of such a call, to be run by parts."""
        given, spec = self._flat(args, kwargs)
        with self._plan(given, spec) as (plan, graph, leaves), torch.no_grad():
            lower = partial(self._lower_nodes, graph)
            yield Held(plan, graph.capture, graph.constants, given, leaves, lower)

    def _lower_nodes(
        self, graph: _Graph, leaves: list[Any], symbols: dict[str, int], nodes: Sequence[fx.Node]
    ) -> Plan:
        from aigc_engine.graph.lower import lower  # it can't be imported without the native module

        with self._lock, torch.inference_mode(False), use_precision(self._options.precision):
            return lower(
                graph.capture, graph.constants, leaves, symbols, self._options.quantize, outputs=nodes
            )

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        wrapped = hasattr(self._forward, "__wrapped__")
        leaves, spec = pytree.tree_flatten(by_keyword(bound) if wrapped else (bound.args, bound.kwargs))
        arguments.check(self._module, leaves, spec)
        return leaves, spec

    @contextmanager
    def _plan(self, given: Sequence[Any], spec: pytree.TreeSpec) -> Iterator[tuple[Plan, _Graph, list[Any]]]:
        """A plan for these arguments that no other call is using, and the arguments as it takes them."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), use_precision(self._options.precision):
            self._follow()
            if self._rounds is None and any(map(is_fraction, given)):
                with self._bare():
                    self._rounds = not reads_fractions(self._module, given, spec)
            shape = self._shape(given, spec)
            leaves = self._prepared(given)
            plan = shape.free.pop() if shape.free else self._lower(shape, leaves)
            self._latest = plan
        try:
            yield plan, shape.graph, leaves
        finally:
            shape.free.append(plan)

    def _follow(self) -> None:
        """Follows changes of the module's tensors; after other changes graphs are captured again."""
        if self._structure is not None and not self._structure.holds():
            self._drop()
        if all(graph.constants.refresh() for graph in self._graphs):
            return
        self._shapes.clear()  # a tensor was replaced: plans have its old address
        self._graphs = [graph for graph in self._graphs if graph.constants.fits()]
        for graph in self._graphs:
            graph.constants = self._constants(graph.capture)

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
        precision = self._options.precision or torch.get_float32_matmul_precision()
        leaves = tuple(
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
            for leaf in self._prepared(given)
        )
        return spec, leaves, native.threads(), native.isa(), precision, chosen_backends()

    def _prepared(self, given: Sequence[Any]) -> list[Any]:
        """Arguments as graphs take them.

        Python's numbers become tensors without axes, unless the module needs to see them, or rounds them and
        this one is a fraction; with a dtype, tensors of floats that have two axes or more (a time has fewer)
        are cast.
        """
        leaves = list(given)
        for index, leaf in enumerate(leaves):
            if type(leaf) in NUMBERS and not self._numbers_fixed:
                leaves[index] = leaf if self._rounds and is_fraction(leaf) else as_tensor(leaf)
            elif self._options.dtype is not None and isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaves[index] = leaf.to(self._options.dtype) if leaf.ndim > 1 else leaf
        return leaves

    def _new_shape(self, given: Sequence[Any], spec: pytree.TreeSpec) -> _Shape:
        """A shape with its first plan, from a graph that holds for it."""
        for graph in self._graphs:
            shape = self._planned(graph, given, spec)
            if shape is not None:
                return shape
        failure: UnsupportedError | None = None
        for fixed, sizes in self._ways(given):
            self._numbers_fixed = fixed
            leaves = self._prepared(given)
            if sizes == "any" and any(graph.capture.holds_for_two(leaves, spec) for graph in self._graphs):
                continue  # it would be captured again
            try:
                return self._captured(given, spec, sizes)
            except StrictError:
                raise
            except UnsupportedError as error:
                failure = error
        assert failure is not None
        raise failure

    def _ways(self, given: Sequence[Any]) -> list[tuple[bool, Sizes]]:
        """Whether numbers are fixed, and which sizes are, from the graph for most calls to one for these."""
        numbers = [False, True] if any(type(leaf) in NUMBERS for leaf in given) else [False]
        ones = any(isinstance(leaf, Tensor) and leaf.shape[:1] == (1,) for leaf in given)
        sizes: list[Sizes] = ["any", "not one"] if ones else ["any"]
        ways = [(fixed, kind) for fixed in numbers if fixed >= self._numbers_fixed for kind in sizes]
        return [*ways, (max(numbers[-1], self._numbers_fixed), "given")]

    def _captured(self, given: Sequence[Any], spec: pytree.TreeSpec, sizes: Sizes) -> _Shape:
        """The same from a new graph, for these sizes or others."""
        arguments.check_module(self._module)
        with self._bare():
            module = traceable(self._module, self._options.dtype)
            with Structure(module).restored(strict=not self._numbers_fixed):
                found = capture(module, self._prepared(given), spec, sizes)
        constants = self._constants(found)
        if self._options.dtype is not None:
            cast_sources(found, constants)
        fuse(found)
        constants = self._constants(found)
        graph = _Graph(found, constants)
        self._graphs.append(graph)
        self._structure = Structure(self._module)
        shape = self._planned(graph, given, spec)
        if shape is None:
            name = type(self._module).__name__
            raise UnsupportedError(
                f"accelerate: {name}'s code takes another way for these sizes than for others"
            )
        return shape

    def _planned(self, graph: _Graph, given: Sequence[Any], spec: pytree.TreeSpec) -> _Shape | None:
        """The same from a graph, None where that doesn't hold for these arguments."""
        leaves = self._prepared(given)
        symbols = graph.capture.symbols(leaves, spec)
        if symbols is None:
            return None
        shape = _Shape(graph, symbols)
        try:
            shape.free.append(self._lower(shape, leaves))
        except RankError:  # traced at sizes for which the code took another way
            return None
        return shape

    def _result_dtype(self) -> tuple[torch.dtype, torch.dtype] | None:
        """With a dtype, what results in it are cast to: that of the module's parameters."""
        floats = (p.dtype for p in self._module.parameters() if p.is_floating_point())
        own = next(floats, None)
        return None if self._options.dtype is None or own is None else (self._options.dtype, own)

    def _lower(self, shape: _Shape, leaves: Sequence[Any]) -> Plan:
        from aigc_engine.graph.lower import lower  # it can't be imported without the native module

        graph = shape.graph
        cast, quantize = self._result_dtype(), self._options.quantize
        plan = lower(graph.capture, graph.constants, leaves, shape.symbols, quantize, cast)
        left = [call for call in plan.calls if call.reason]
        names = [f"{call.name} ({call.what} {call.shape}: {call.reason})" for call in left]
        if left and self._options.strict:
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


def _own_forward(module: nn.Module) -> Any:
    """A forward that this very module was given by someone else, beneath ours."""
    found = module.__dict__.get("forward")
    return found._patched if isinstance(found, Accelerated) else found
