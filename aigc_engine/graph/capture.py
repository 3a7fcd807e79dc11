"""From a live module to one graph for all its shapes.

`torch.export` traces the module once with symbolic sizes; parameters and buffers stay names, so that whoever
runs the graph reads them from the module as it is then.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from aigc_engine.dispatch import UnsupportedError, capturing
from aigc_engine.graph.branches import answers_noted, branches
from aigc_engine.graph.traced import Traced, evaluate, expression, traced

Sizes = Literal["any", "not one", "given"]
# What says that a module can't be traced: torch.export's own errors are RuntimeErrors, or TypeErrors and
# ValueErrors for arguments; the others come from the module's code, which meets a tensor where it had a
# number, or two rows where it had one.
LIMITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
_ONES = ("!= 1", ">= 2", "> 1")  # guards that only say that a size isn't 1: operators' or also in `branches`


class RankError(ValueError):
    """The graph was traced at sizes that these contradict."""


@dataclass(frozen=True)
class Source:
    """Where a placeholder's value is: an attribute of the module (a dotted name), or the graph's own."""

    name: str
    value: Tensor | None = None


@dataclass
class Capture:
    """A module's computation.

    Args:
        graph: aten calls; `meta["val"]` of a node is a fake tensor, after `settle` a `Traced`.
        sources: placeholder name to where its tensor is.
        inputs: placeholders of the flattened arguments, in order.
        taken: what is known of each argument, or the constant that the graph was made for.
        signature: of the module's forward.
        in_spec, out_spec: how arguments were flattened, and how flat results become what the module returns.
        ranges: smallest and largest value of each symbol; None for no bound.
        casts: dtypes in which plans keep inputs, other than the arguments'.
        guards: what else must hold of the sizes, as Python over L, arguments by name.
        branches: what the module's own code found of the sizes, as Python over the symbols.
    """

    graph: fx.Graph
    sources: dict[str, Source]
    inputs: list[fx.Node]
    taken: list[Any]
    signature: inspect.Signature
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    ranges: Mapping[str, tuple[int, int | None]]
    guards: Sequence[str]
    branches: Sequence[str] = ()
    casts: dict[str, torch.dtype] = field(default_factory=dict)

    def symbols(self, leaves: Sequence[Any], in_spec: pytree.TreeSpec) -> dict[str, int] | None:
        """Values of the symbols for these arguments, or None where the graph doesn't hold for them."""
        if in_spec != self.in_spec:
            return None
        found: dict[str, int] = {}
        for leaf, taken in zip(leaves, self.taken, strict=True):
            if not isinstance(taken, Traced):
                if type(leaf) is not type(taken) or leaf != taken:
                    return None
                continue
            if not isinstance(leaf, Tensor) or leaf.dtype != taken.dtype or leaf.ndim != taken.ndim:
                return None
            for size, wanted in zip(leaf.shape, taken.shape, strict=True):
                if (
                    isinstance(wanted, str)
                    and wanted.isidentifier()
                    and found.setdefault(wanted, size) != size
                ):
                    return None
        return found if self._allows(found, leaves) else None

    def holds_for_two(self, leaves: Sequence[Any], in_spec: pytree.TreeSpec) -> bool:
        """Whether the graph holds for such arguments with two rows where they have one."""
        return self.symbols([_never_one(leaf) for leaf in leaves], in_spec) is not None

    def settle(self) -> None:
        """Forgets the fakes: from here on, what nodes give is `Traced`."""
        for node in self.graph.nodes:
            value = node.meta.get("val")
            node.meta = {"val": traced(value)} if isinstance(value, Tensor) else {}
        self.taken = [
            node.meta.get("val", taken) for node, taken in zip(self.inputs, self.taken, strict=True)
        ]

    def _allows(self, symbols: Mapping[str, int], leaves: Sequence[Any]) -> bool:
        # Traced at 2, a size of 1 was never seen. The graph holds for it too where the module's code takes
        # the same way: lowering looks at ranks.
        for symbol, size in symbols.items():
            low, high = self.ranges.get(symbol, (0, None))
            if max(size, 2) < low or (high is not None and size > high):
                return False
        for leaf, taken in zip(leaves, self.taken, strict=True):
            if isinstance(taken, Traced) and tuple(leaf.shape) != self._sizes(taken, symbols):
                return False
        if not self._same_way(symbols):
            return False
        args, kwargs = pytree.tree_unflatten(list(leaves), self.in_spec)
        named = dict(self.signature.bind(*args, **kwargs).arguments)
        return all(
            guard.rstrip(")").endswith(_ONES) or eval(guard, {"L": named, "math": math, "torch": torch})
            for guard in self.guards
        )

    def _same_way(self, symbols: Mapping[str, int]) -> bool:
        try:
            return all(evaluate(branch, symbols) for branch in self.branches)
        except NameError:  # as below
            return False

    def _sizes(self, taken: Traced, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
        try:
            return tuple(evaluate(size, symbols) for size in taken.shape)
        except NameError:  # a symbol that stands alone in no argument's shape
            return None


def signature_of(module: nn.Module) -> inspect.Signature:
    """Of the module's forward."""
    return inspect.signature(module.forward)


def traceable(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The module as it can be captured in another dtype, or its own.

    Where that's needed, a copy whose tensors are memory that nobody touches: in another dtype, and for
    parameters made in inference mode, which torch.export refuses.
    """
    if dtype is None and not any(tensor.is_inference() for tensor in module.parameters()):
        return module
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        like = torch.empty_like(tensor, dtype=wanted, requires_grad=False)
        memo[id(tensor)] = nn.Parameter(like, False) if isinstance(tensor, nn.Parameter) else like
    return copy.deepcopy(module, memo)


def capture(
    module: nn.Module, leaves: Sequence[Any], in_spec: pytree.TreeSpec, sizes: Sizes = "any"
) -> Capture:
    """Traces `module` on arguments like these.

    Args:
        module: in eval mode, on the CPU.
        leaves: the flattened (args, kwargs).
        in_spec: how they were flattened.
        sizes: that may vary: "any" where the module allows it, which it doesn't of channels; "not one": those
            that are 1 stay so; "given": none.

    Raises:
        UnsupportedError: the module can't be traced; the message says where.
    """
    example = [_never_one(_dense(leaf)) if sizes == "any" else _dense(leaf) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(example, in_spec)
    dynamic: Any = None
    if sizes != "given":
        dynamic = tuple(pytree.tree_map(_dynamic, args)), pytree.tree_map(_dynamic, kwargs)
    try:
        with answers_noted() as answers:
            program, guards = _export(module, args, kwargs, dynamic)
    except LIMITS as error:
        raise UnsupportedError(
            f"accelerate: {type(module).__name__} can't be captured: {_first_lines(error)}; "
            "torch.export says more"
        ) from error
    return _read(module, program, guards, branches(answers), in_spec)


def _export(module: nn.Module, args: tuple, kwargs: dict, dynamic: Any) -> tuple[Any, list[str]]:
    shapes = None
    if dynamic is not None:
        shapes = _by_name(module, args, kwargs, dynamic)
    with torch.no_grad(), capturing(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
        guards = list(getattr(program, "_guards_code", None) or ())
        if not all(map(_functional, program.graph.nodes)):  # takes as long as the export itself
            program = program.run_decompositions({})  # functional, while composite ops stay whole
    return program, guards


def _functional(node: fx.Node) -> bool:
    """Whether this neither writes to its arguments nor calls another graph."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    return getattr(operator, getattr(node.target, "__name__", ""), None) is node.target or node.target in (
        math.floor,
        math.ceil,
        torch.sym_max,
        torch.sym_min,
        torch.sym_float,
        torch.sym_int,
        torch.sym_not,
    )


def _by_name(module: nn.Module, args: tuple, kwargs: dict, dynamic: tuple[tuple, dict]) -> Any:
    """dynamic_shapes of torch.export: one entry for each parameter of forward that is given."""
    bound = signature_of(module).bind(*args, **kwargs)
    given = signature_of(module).bind(*dynamic[0], **dynamic[1])
    return {name: given.arguments[name] for name in bound.arguments}


@contextlib.contextmanager
def _quiet() -> Any:
    """torch.export warns through logging too, about what is checked here."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _dense(leaf: Any) -> Any:
    """A tensor without gaps, whose strides follow from its sizes: plans copy arguments anyway."""
    if isinstance(leaf, Tensor) and torch.empty_like(leaf).stride() != leaf.stride():
        return leaf.contiguous()
    return leaf


def _never_one(leaf: Any) -> Any:
    """A tensor of 1 row as 2, since torch.export takes a size of 1 for a constant."""
    if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 1:
        return leaf.expand(2, *leaf.shape[1:]).clone()
    return leaf


def _dynamic(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return None
    # Channels, features and the like are the weights'; torch.export finds which sizes may vary.
    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(leaf.shape) if size != 1}


def _read(
    module: nn.Module, program: Any, guards: Sequence[str], ways: Sequence[str], in_spec: pytree.TreeSpec
) -> Capture:
    from torch.export.graph_signature import InputKind, OutputKind

    name = type(module).__name__
    signature = program.graph_signature
    for output in signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            raise UnsupportedError(
                f"accelerate: {name} writes to {output.target or output.arg}, expected no side effects of "
                "forward; call eval() or return the value instead"
            )
    for node in program.graph.nodes:
        if _depends_on_values(node.meta.get("val")):
            raise UnsupportedError(
                f"accelerate: {name} can't be captured: {node.target} gives a shape that depends on values, "
                "expected one that follows from those of the arguments; use torch.where, not masks as indices"
            )
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    sources, inputs = {}, []
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            sources[node.name] = Source(str(spec.target))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            sources[node.name] = Source(str(spec.target), program.constants[str(spec.target)])
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
        else:
            raise UnsupportedError(
                f"accelerate: {name} takes a {spec.kind.name} {spec.target}, expected tensors"
            )
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    taken = [node.meta.get("val") for node in inputs]
    return Capture(
        program.graph,
        sources,
        inputs,
        taken,
        signature_of(module),
        in_spec,
        out_spec,
        _ranges(program),
        guards,
        ways,
    )


def _depends_on_values(value: Any) -> bool:
    """Whether sizes of a tensor were made up while tracing."""
    if not isinstance(value, Tensor):
        return False
    symbols = (symbol for size in value.shape for symbol in getattr(expression(size), "free_symbols", ()))
    return any(str(symbol).startswith("u") for symbol in symbols)


def _ranges(program: Any) -> dict[str, tuple[int, int | None]]:
    return {
        str(symbol): (int(allowed.lower), int(allowed.upper) if allowed.upper.is_Integer else None)
        for symbol, allowed in program.range_constraints.items()
    }


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]
