"""From a fused graph and the sizes of a call to a plan.

The graph is interpreted over tensors of the arena, while the kernels' bindings record instead of running:
each adapter turns tensors into addresses as it always does, and views cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from aigc_engine import _native
from aigc_engine.dispatch import Op
from aigc_engine.graph.arena import Arena, Lifetimes
from aigc_engine.graph.capture import Capture, evaluate
from aigc_engine.graph.constants import PACKS, Constants, repeatable
from aigc_engine.graph.passes.clean import ASSERTIONS, CASTS
from aigc_engine.graph.plan import Call, Native, Plan, Result, Torch
from aigc_engine.native.memory import reshape, use_memory

aten = torch.ops.aten
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
}
SHAPED = {aten.flatten.using_ints, aten.unflatten.int}  # by other arguments than the shape itself


class RankError(ValueError):
    """The graph was traced at sizes that these contradict."""


def lower(capture: Capture, constants: Constants, leaves: Sequence[Any], symbols: Mapping[Any, int]) -> Plan:
    """The plan of a captured graph for arguments like these.

    Raises:
        RankError: the graph doesn't hold for these sizes.
    """
    with torch.no_grad():
        lifetimes = Lifetimes()
        _Lowering(capture, constants, leaves, lifetimes).run()
        arena = Arena(lifetimes)
        lowering = _Lowering(capture, constants, leaves, arena)
        values = lowering.run()
    results = []
    for value, node in zip(values, _outputs(capture), strict=True):
        stride: tuple[int, ...] = ()
        if isinstance(value, Tensor):
            stride = tuple(evaluate(step, symbols) for step in node.meta["val"].stride())
        results.append(Result(value, stride))
    kept = [arena.memory, lowering.kept, lowering.inputs]
    return Plan(lowering.inputs, lowering.steps, results, arena.peak, arena.total, kept)


def _outputs(capture: Capture) -> list[Any]:
    (output,) = (node for node in capture.graph.nodes if node.op == "output")
    return list(output.args[0])


class _Lowering:
    """One pass over the graph."""

    def __init__(
        self, capture: Capture, constants: Constants, leaves: Sequence[Any], memory: Lifetimes | Arena
    ) -> None:
        self.capture = capture
        self.constants = constants
        self.leaves = dict(zip(capture.inputs, leaves, strict=True))
        self.memory = memory
        self.inputs: list[Tensor | None] = []
        self.steps: list[Native | Torch] = []
        self.kept: list[Any] = []
        self._values: dict[fx.Node, Any] = {}
        self._fixed: set[fx.Node] = set()  # follow from sizes alone
        self._recording: _native.Recording | None = None
        self._call = Call("", "", "")

    def run(self) -> list[Any]:
        last = _last_users(self.capture.graph)
        for node in self.capture.graph.nodes:
            if node.op == "output":
                return [self._value(item) for item in node.args[0]]
            self._values[node] = self._node(node)
            self._check_rank(node)
            for done in last.get(node, ()):
                self._values.pop(done, None)
        raise AssertionError("a graph without output")

    # Memory, as the adapters see it.

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.memory.empty(shape, stride, dtype)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """A copy that an adapter makes while it's being recorded."""
        recording = self._recording
        assert recording is not None
        recording.stop()
        self._close()
        call = Call(self._call.name, "copy", _shape(target), reason="no native copy")
        self.steps.append(Torch(call, aten.clone.default, (source,), {}, [target]))
        self._recording = self._open()
        self._recording.start()

    def _open(self) -> _native.Recording:
        step = self.steps[-1] if self.steps else None
        if not isinstance(step, Native):
            step = Native(_native.Recording())
            self.steps.append(step)
        return step.recording

    def _close(self) -> None:
        """Ends the current node's share of a recording."""
        step = self.steps[-1]
        assert isinstance(step, Native)
        if len(step.recording) == (step.ends[-1] if step.ends else 0):
            if not step.calls:
                self.steps.pop()
            return
        step.calls.append(self._call)
        step.ends.append(len(step.recording))

    # Nodes.

    def _value(self, item: Any) -> Any:
        if not isinstance(item, fx.Node):
            return item
        return self.constants.value(item) if item in self.constants.static else self._values[item]

    def _node(self, node: fx.Node) -> Any:
        if node in self.constants.static:
            return None  # asked for when needed
        if node.op == "placeholder":
            return self._input(node)
        if node.target in ASSERTIONS:
            return None
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        if self._is_fixed(node):
            self._fixed.add(node)
            value = node.target(*args, **kwargs)
            self.kept.append(value)
            return value
        if isinstance(node.target, Op):
            return self._op(node, node.target, args, kwargs)
        return self._aten(node, args, kwargs)

    def _is_fixed(self, node: fx.Node) -> bool:
        if not repeatable(node):
            return False
        if node.target is aten.sym_size.int:
            return True
        return all(found in self._fixed for found in node.all_input_nodes)

    def _input(self, node: fx.Node) -> Any:
        leaf = self.leaves[node]
        if not isinstance(leaf, Tensor) or not node.users:
            self.inputs.append(None)
            return leaf
        layout = torch.channels_last if leaf.ndim == 4 else torch.contiguous_format
        stride = torch.empty(leaf.shape, device="meta", memory_format=layout).stride()
        self.inputs.append(self.memory.empty(leaf.shape, stride, leaf.dtype))
        return self.inputs[-1]

    def _op(self, node: fx.Node, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op.name in PACKS and isinstance(node.args[1], fx.Node) and node.args[1] in self.constants.static:
            args = (args[0], self.constants.packed(node.args[1], op.name, kwargs), *args[2:])
        verdict = op.explain(*args, **kwargs)
        whole = all(t.numel() for t in _tensors((args, kwargs)))
        if verdict.runs != "native" or not whole:
            reason = (
                "no elements" if not whole else "; ".join(str(v) for v in verdict.verdicts if not v.serves)
            )
            plain = fx.map_arg((node.args, dict(node.kwargs)), self._value)
            return self._torch(node, op.reference, plain[0], plain[1], reason or "no native kernel")
        flops, moved = op.cost(*args, **kwargs) if op.cost is not None else (0.0, 0.0)
        self._call = Call(node.name, op.name + _options(kwargs), "", flops, moved)
        self._recording = self._open()
        self._recording.start()
        try:
            with use_memory(self):
                value = op.implementation("native")(*args, **kwargs)
        finally:
            self._recording.stop()
            self._recording = None
        self._call.shape = _shape(value)
        self._close()
        return value

    def _aten(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(True for _ in _tensors((args, kwargs))) and not _makes_tensors(node):
            return node.target(*args, **kwargs)
        if node.target in RESHAPES:
            shape = node.target(*_map(args, _meta)).shape if node.target in SHAPED else args[1]
            return self._reshape(node, args[0], shape)
        if node.target not in CASTS and _may_view(node):
            value = node.target(*args, **kwargs)
            if _shares((args, kwargs), value):
                return list(value) if isinstance(value, tuple) else value
        return self._torch(node, node.target, args, kwargs, "no native kernel")

    def _reshape(self, node: fx.Node, x: Tensor, shape: Sequence[int]) -> Tensor:
        try:
            return x.view(shape)
        except RuntimeError:
            out = self.memory.empty(x.shape, torch.empty(x.shape, device="meta").stride(), x.dtype)
            call = Call(node.name, "copy", _shape(out), reason="no native copy")
            self.steps.append(Torch(call, aten.clone.default, (x,), {}, [out]))
            return reshape(out, shape)

    def _torch(self, node: fx.Node, function: Any, args: Any, kwargs: Any, reason: str) -> Any:
        found = function(*_map(args, _meta), **_map(kwargs, _meta))
        several = isinstance(found, (tuple, list))
        read = _items_read(node) if several else {0}
        out = [
            self.memory.empty(t.shape, t.stride(), t.dtype) if index in read else None
            for index, t in enumerate(found if several else [found])
        ]
        call = Call(node.name, _name(node.target), _shape(out[min(read)]), reason=reason)
        self.steps.append(Torch(call, function, tuple(args), dict(kwargs), out))
        return out if several else out[0]

    def _check_rank(self, node: fx.Node) -> None:
        value, traced = self._values[node], node.meta.get("val")
        if isinstance(value, Tensor) and isinstance(traced, Tensor) and value.ndim != traced.ndim:
            raise RankError(f"{node.name} has {value.ndim} axes, was traced with {traced.ndim}")


def _last_users(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What each node is the last to read."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for read in node.all_input_nodes:
            last[read] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        found.setdefault(user, []).append(node)
    return found


def _items_read(node: fx.Node) -> set[int]:
    """Which results of several are used."""
    return {user.args[1] for user in node.users}


def _shares(args: Any, value: Any) -> bool:
    """Whether all tensors of a result are memory of the arguments'."""
    known = {t.untyped_storage().data_ptr() for t in _tensors(args)}
    return all(t.untyped_storage().data_ptr() in known for t in _tensors(value))


def _may_view(node: fx.Node) -> bool:
    """Whether a node's result can be memory of its argument's, or is an item of a list."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True  # operator.getitem
    return any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def _makes_tensors(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any("Tensor" in str(r.type) for r in schema.returns)


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _map(value: Any, fn: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, fn) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, fn) for key, item in value.items()}
    return fn(value)


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _shape(value: Any) -> str:
    value = value[0] if isinstance(value, (tuple, list)) else value
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _options(kwargs: Mapping[str, Any]) -> str:
    """What a fused op does besides: its activation, and the operands that were other nodes."""
    shown = [str(kwargs["act"])] if kwargs.get("act", "none") != "none" else []
    shown += [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    return "".join(f" + {name}" for name in shown)


def _name(target: Any) -> str:
    return (
        target.name()
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", str(target))
    )
