"""Chains of elementwise calls as one pass over memory each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from aigc_engine import ops
from aigc_engine.graph.passes.edit import (
    CASTS,
    aten,
    calls,
    dtype,
    erase_dead,
    insert,
    is_tensor,
    normal,
    of_sizes,
    replace,
    sizes,
)
from aigc_engine.ops.pointwise import MOST_AXES

FLOATS = (torch.float32, torch.bfloat16)
MOST_TENSORS, MOST_STEPS = 8, 24  # csrc/cpu/args.h: PointwiseArgs

UNARY = {
    aten.abs.default: "abs",
    aten.cos.default: "cos",
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.neg.default: "neg",
    aten.reciprocal.default: "reciprocal",
    aten.relu.default: "relu",
    aten.rsqrt.default: "rsqrt",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.sin.default: "sin",
    aten.sqrt.default: "sqrt",
    aten.square.default: "square",
    aten.tanh.default: "tanh",
}
BINARY = {
    aten.add.Tensor: "add",
    aten.add.Scalar: "add",
    aten.div.Tensor: "div",
    aten.div.Scalar: "div",
    aten.maximum.default: "maximum",
    aten.minimum.default: "minimum",
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.sub.Tensor: "sub",
    aten.sub.Scalar: "sub",
}


@dataclass(frozen=True)
class Step:
    """A step whose operands are tensors (nodes), earlier steps, or constants."""

    name: str
    operands: tuple[Any, ...]


@dataclass
class Program:
    """Steps in order, the last of which is the value; no step: the tensor itself, in another dtype."""

    steps: list[Step] = field(default_factory=list)
    source: fx.Node | None = None

    @property
    def value(self) -> Any:
        return self.steps[-1] if self.steps else self.source

    def tensors(self) -> list[fx.Node]:
        """The tensors that are read, each once."""
        found = [] if self.source is None else [self.source]
        for step in self.steps:
            found += [operand for operand in step.operands if isinstance(operand, fx.Node)]
        return list(dict.fromkeys(found))

    def numbered(self) -> tuple[list[tuple[Any, ...]], list[fx.Node]]:
        """As `ops.pointwise` takes it."""
        tensors = self.tensors()
        place: dict[int, int] = {id(tensor): index for index, tensor in enumerate(tensors)}
        steps = []
        for index, step in enumerate(self.steps):
            steps.append((step.name, *(o if isinstance(o, float) else place[id(o)] for o in step.operands)))
            place[id(step)] = len(tensors) + index
        return steps, tensors


def join_pointwise(graph: fx.Graph, static: set[fx.Node]) -> None:
    """Elementwise calls in float32 and bfloat16, with those that only they read."""
    _select_by_sizes(graph)
    _widen_numbers(graph)
    programs: dict[fx.Node, Program] = {}
    for node in graph.nodes:
        if node not in static and (steps := _steps_of(node)) is not None:
            programs[node] = _joined(node, steps, programs)
    made: dict[fx.Node, fx.Node] = {}
    for node, program in programs.items():
        if all(user in programs and node not in programs[user].tensors() for user in node.users):
            continue  # all who read it compute it on the way
        numbered, tensors = program.numbered()
        args = (numbered, *(made.get(tensor, tensor) for tensor in tensors))
        made[node] = insert(node, ops.pointwise, args, {"out_dtype": dtype(node)}, node.meta["val"])
    for node, new in made.items():
        node.replace_all_uses_with(new)
    erase_dead(graph)


def _select_by_sizes(graph: fx.Graph) -> None:
    """torch.where with a condition that follows from sizes alone, which is a constant of the plan."""
    fixed = of_sizes(graph)
    for node in calls(graph, aten.where.self, aten.where.ScalarOther):
        condition, *values = node.args
        floats = all(dtype(value) in FLOATS for value in values if is_tensor(value))
        if condition not in fixed or not floats or dtype(node) not in FLOATS or len(sizes(node)) > MOST_AXES:
            continue
        wide = condition.meta["val"].float()
        tensors = [insert(node, aten.to.dtype, (condition, torch.float32), {}, wide)]
        step: list[Any] = ["where", 0]
        for value in values:
            step.append(len(tensors) if is_tensor(value) else float(value))
            tensors += [value] if is_tensor(value) else []
        replace(node, ops.pointwise, ([tuple(step)], *tensors), {"out_dtype": dtype(node)})


def _widen_numbers(graph: fx.Graph) -> None:
    """Tensors without axes beside float ones are numbers of any dtype: in float32 the kernel reads them."""
    cast: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in BINARY or not is_tensor(node):
            continue
        for value in node.args[:2]:
            if dtype(node) not in FLOATS or not is_tensor(value) or sizes(value) or dtype(value) in FLOATS:
                continue
            if value not in cast:
                first = value.next
                while first.op == "placeholder":
                    first = first.next
                cast[value] = insert(
                    first, aten.to.dtype, (value, torch.float32), {}, value.meta["val"].float()
                )
            node.replace_input_with(value, cast[value])


def _joined(node: fx.Node, steps: Callable[[], Program], programs: dict[fx.Node, Program]) -> Program:
    """The node's program with those of its operands that nobody else reads."""
    program = steps()
    for operand in program.tensors():
        before = programs.get(operand)
        if before is None or set(operand.users) != {node} or not _exact(operand, node):
            continue
        longer = _substituted(program, operand, before)
        if len(longer.tensors()) <= MOST_TENSORS and len(longer.steps) <= MOST_STEPS:
            program = longer
    return program


def _exact(operand: fx.Node, node: fx.Node) -> bool:
    """Whether an operand's values can be made on the way: as many, and not narrowed by a cast."""
    if sizes(operand) != sizes(node):
        return False
    return operand.target not in CASTS or dtype(operand) == torch.float32


def _substituted(program: Program, operand: fx.Node, before: Program) -> Program:
    """`before`'s steps first; what read the operand then reads their value."""
    new: dict[int, Any] = {id(operand): before.value}
    steps = list(before.steps)
    for step in program.steps:
        steps.append(Step(step.name, tuple(new.get(id(o), o) for o in step.operands)))
        new[id(step)] = steps[-1]
    return Program(steps, None if steps else before.source)


def _steps_of(node: fx.Node) -> Callable[[], Program] | None:
    """What a node does, as a program, or None where it isn't elementwise on floats."""
    if node.op != "call_function" or not _floats(node):
        return None
    if node.target in UNARY:
        return lambda: Program([Step(UNARY[node.target], (node.args[0],))])
    if node.target in BINARY and set(node.kwargs) <= {"alpha"}:
        a, b = (value if isinstance(value, fx.Node) else float(value) for value in node.args[:2])
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if alpha != 1:
            scaled = Step("mul", (b, float(alpha)))
            return lambda: Program([scaled, Step(BINARY[node.target], (a, scaled))])
        return lambda: Program([Step(BINARY[node.target], (a, b))])
    return _special(node)


def _special(node: fx.Node) -> Callable[[], Program] | None:
    if node.target in CASTS:
        return lambda: Program([], node.args[0])
    if node.target is aten.gelu.default:
        name = "gelu_tanh" if normal(node)["approximate"] == "tanh" else "gelu"
        return lambda: Program([Step(name, (node.args[0],))])
    if node.target is aten.mish.default:
        return lambda: Program(_mish(node.args[0]))
    if node.target is aten.leaky_relu.default:
        slope = float(normal(node)["negative_slope"])
        return lambda: Program([Step("leaky_relu", (node.args[0], slope))])
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        return lambda: Program([Step("square", (node.args[0],))])
    if node.target is aten.rsub.Scalar and len(node.args) == 2 and not node.kwargs:
        return lambda: Program([Step("sub", (float(node.args[1]), node.args[0]))])
    if node.target is aten.clamp.default:
        found = normal(node)
        low, high = found["min"], found["max"]
        if low is not None and high is not None:
            return lambda: Program([Step("clamp", (node.args[0], float(low), float(high)))])
    return None


def _mish(x: fx.Node) -> list[Step]:
    """x tanh(log(1 + e^x)) as x n / (n + 2), n = e^x (e^x + 2): nothing cancels, and from 20 on it's x."""
    e = Step("exp", (low := Step("minimum", (x, 20.0)),))
    n = Step("mul", (e, more := Step("add", (e, 2.0))))
    share = Step("div", (n, under := Step("add", (n, 2.0))))
    return [low, e, more, n, under, share, Step("mul", (x, share))]


def _floats(node: fx.Node) -> bool:
    """Whether all tensors here have dtypes that the kernel has and few enough axes; the rest is numbers."""
    if not is_tensor(node) or dtype(node) not in FLOATS or len(sizes(node)) > MOST_AXES:
        return False
    reads = node.all_input_nodes
    plain = all(isinstance(value, (fx.Node, int, float, type(None), torch.dtype, str)) for value in node.args)
    return bool(reads) and plain and all(is_tensor(read) and dtype(read) in FLOATS for read in reads)
