"""From a fused graph and the sizes of a call to a plan.

The graph is interpreted over tensors of the arena, while the kernels' bindings record instead of running:
each adapter turns tensors into addresses as it always does, and views cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from aigc_engine import _native, ops
from aigc_engine.dispatch import REFERENCE, Op, UnsupportedError
from aigc_engine.graph.arena import Arena, Lifetimes
from aigc_engine.graph.capture import Capture, RankError
from aigc_engine.graph.constants import PACKS, Constants, repeatable
from aigc_engine.graph.passes.clean import ASSERTIONS, CASTS
from aigc_engine.graph.passes.hoist import Needs, kept_between_calls, needs
from aigc_engine.graph.plan import Call, Native, Plan, Result, Torch
from aigc_engine.graph.traced import Traced, evaluate
from aigc_engine.graph.values import (
    ancestors,
    as_meta,
    copies_natively,
    described,
    items_read,
    last_users,
    makes_tensors,
    map_values,
    may_view,
    name_of,
    options_of,
    shares,
    tensors_in,
)
from aigc_engine.native import pointwise
from aigc_engine.native.memory import use_memory

aten = torch.ops.aten
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
}
OF_PIXELS = {ops.conv2d, ops.conv_transpose2d, ops.group_norm, ops.group_norm_silu}
SHAPED = {aten.flatten.using_ints, aten.unflatten.int}  # by other arguments than the shape itself


def lower(
    capture: Capture,
    constants: Constants,
    leaves: Sequence[Any],
    symbols: Mapping[str, int],
    quantize: str | None = None,
    cast: tuple[torch.dtype, torch.dtype] | None = None,
    outputs: Sequence[fx.Node] | None = None,
) -> Plan:
    """The plan of a captured graph for arguments like these.

    Args:
        symbols: the values of the graph's symbols.
        quantize: how weights are that are used in every call, None for as they are; what follows from a
            prompt or a time is computed once and keeps its precision.
        cast: results of the first dtype are returned in the second.
        outputs: nodes whose values are the results, with nothing computed that they don't follow from; None
            takes the graph's.

    Raises:
        RankError: the graph doesn't hold for these sizes.
    """
    with torch.no_grad():
        nodes = _outputs(capture) if outputs is None else outputs
        lifetimes = Lifetimes()
        _Lowering(capture, constants, leaves, quantize, nodes, lifetimes).run()
        arena = Arena(lifetimes)
        lowering = _Lowering(capture, constants, leaves, quantize, nodes, arena)
        values = lowering.run()
    results = []
    for value, node in zip(values, nodes, strict=True):
        if isinstance(value, Tensor):
            stride = tuple(evaluate(step, symbols) for step in node.meta["val"].strides)
            dtype = cast[1] if cast is not None and value.dtype == cast[0] else value.dtype
            results.append(Result(value, stride, dtype))
        else:
            results.append(Result(value))
    kept = [arena.memory, lowering.kept, lowering.inputs]
    return Plan(lowering.inputs, lowering.steps, results, lowering.held, arena.peak, arena.total, kept)


def _outputs(capture: Capture) -> list[Any]:
    (output,) = (node for node in capture.graph.nodes if node.op == "output")
    return list(output.args[0])


class _Lowering:
    """One pass over the graph."""

    def __init__(
        self,
        capture: Capture,
        constants: Constants,
        leaves: Sequence[Any],
        quantize: str | None,
        outputs: Sequence[Any],
        memory: Lifetimes | Arena,
    ) -> None:
        self.capture = capture
        self.constants = constants
        self.leaves = dict(zip(capture.inputs, leaves, strict=True))
        self.quantize = quantize
        self.outputs = outputs
        self.memory = memory
        self.held: dict[fx.Node, Tensor] = {}
        self.inputs: list[Tensor | None] = []
        self.steps: list[Native | Torch] = []
        self.kept: list[Any] = []
        self._needs = needs(capture)
        self._need: Needs = None  # the current node's
        self._values: dict[fx.Node, Any] = {}
        self._fixed: set[fx.Node] = set()  # follow from sizes alone
        self._recording: _native.Recording | None = None
        self._call = Call("", "", "")

    def run(self) -> list[Any]:
        self._wanted = ancestors(self.outputs)
        nodes = [
            node for node in self.capture.graph.nodes if node in self._wanted or node.op == "placeholder"
        ]
        last = last_users(nodes)
        for node in nodes:
            self._need = self._needs[node]
            self._values[node] = self._node(node)
            self._check_rank(node)
            if kept_between_calls(self._needs, node):
                self._hold(node)
            for done in last[node]:
                if done not in self.outputs:
                    self._values.pop(done, None)
        return [self._value(item) for item in self.outputs]

    def _hold(self, node: fx.Node) -> None:
        if isinstance(self.memory, Lifetimes):
            for tensor in tensors_in(self._values[node]):
                self.memory.hold(tensor)
        elif self._need:
            self.held[node] = self._values[node]

    # Memory, as the adapters see it.

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.memory.empty(shape, stride, dtype)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """A copy that an adapter makes while it's being recorded."""
        if copies_natively(source, target):
            pointwise.run([], target, source)
            return
        recording = self._recording
        assert recording is not None
        recording.stop()
        self._close()
        self._copy_by_torch(self._call.name, source, target)
        self._recording = self._open()
        self._recording.start()

    def _copy_by_torch(self, name: str, source: Tensor, target: Tensor) -> None:
        call = Call(name, "copy", described(target), reason=f"no native copy of {source.dtype}")
        self._run_by_torch(call, aten.clone.default, (source,), {}, [target])

    def _run_by_torch(
        self, call: Call, function: Any, args: Any, kwargs: Any, out: list[Tensor | None]
    ) -> None:
        if isinstance(self.memory, Lifetimes):  # a step that kept its tensors would keep them alive
            args, kwargs, out = (), {}, []
        self.steps.append(Torch(self._need, call, function, tuple(args), dict(kwargs), out))

    def _open(self) -> _native.Recording:
        step = self.steps[-1] if self.steps else None
        if not isinstance(step, Native) or step.needs != self._need:
            step = Native(self._need, _native.Recording())
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
        kwargs = fx.map_arg(dict(node.kwargs), self._value)
        if self._is_fixed(node):
            self._fixed.add(node)
            value = node.target(*fx.map_arg(node.args, self._value), **kwargs)
            self.kept.append(value)
            return value
        if isinstance(node.target, Op):
            args = fx.map_arg(self._with_packed(node, node.target, kwargs), self._value)
            return self._op(node, node.target, args, kwargs)
        return self._aten(node, fx.map_arg(node.args, self._value), kwargs)

    def _with_packed(self, node: fx.Node, op: Op, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """A node's arguments with a weight of the module's packed, whose plain values nobody asks for."""
        if op.name not in PACKS or node.args[1] not in self.constants.static:
            return node.args
        quantize = self.quantize if self._need is None else None
        weight = self.constants.packed(node.args[1], op.name, kwargs, quantize)
        return node.args[0], weight, *node.args[2:]

    def _is_fixed(self, node: fx.Node) -> bool:
        if not repeatable(node):
            return False
        if node.target is aten.sym_size.int:
            return True
        return all(found in self._fixed for found in node.all_input_nodes)

    def _input(self, node: fx.Node) -> Any:
        leaf = self.leaves[node]
        if not isinstance(leaf, Tensor) or node not in self._wanted:
            self.inputs.append(None)
            return leaf
        layout = torch.channels_last if leaf.ndim == 4 else torch.contiguous_format
        stride = torch.empty(leaf.shape, device="meta", memory_format=layout).stride()
        self.inputs.append(
            self.memory.empty(leaf.shape, stride, self.capture.casts.get(node.name, leaf.dtype))
        )
        return self.inputs[-1]

    def _op(self, node: fx.Node, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        verdict = op.explain(*args, **kwargs)
        if verdict.runs not in ("native", REFERENCE):
            raise UnsupportedError(
                f"accelerate: {node.name}, use_backend names who can't serve it: {verdict}"
            )
        whole = all(t.numel() for t in tensors_in((args, kwargs)))
        if verdict.runs != "native" or not whole:
            reason = (
                "no elements" if not whole else "; ".join(str(v) for v in verdict.verdicts if not v.serves)
            )
            plain = fx.map_arg((node.args, dict(node.kwargs)), self._value)
            return self._torch(node, op.reference, plain[0], plain[1], reason or "no native kernel")
        flops, moved = op.cost(*args, **kwargs) if op.cost is not None else (0.0, 0.0)
        what = op.name + options_of(op, args, kwargs)
        return self._record(
            Call(node.name, what, "", flops, moved), op.implementation("native"), args, kwargs
        )

    def _record(self, call: Call, function: Any, args: Any, kwargs: Any) -> Any:
        """Calls an adapter whose kernels are recorded."""
        self._call = call
        self._recording = self._open()
        self._recording.start()
        try:
            with use_memory(self):
                value = function(*args, **kwargs)
        finally:
            self._recording.stop()
            self._recording = None
        call.shape = described(value)
        self._close()
        return value

    def _aten(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(True for _ in tensors_in((args, kwargs))) and not makes_tensors(node):
            return node.target(*args, **kwargs)
        if node.target is aten.cat.default and all(copies_natively(part, part) for part in args[0]):
            return self._cat(node, *args, **kwargs)
        if node.target in RESHAPES:
            shape = node.target(*map_values(args, as_meta)).shape if node.target in SHAPED else args[1]
            return self._reshape(node, args[0], shape)
        if node.target not in CASTS and may_view(node):
            value = node.target(*args, **kwargs)
            if shares((args, kwargs), value):
                return list(value) if isinstance(value, tuple) else value
        return self._torch(node, node.target, args, kwargs, "no native kernel")

    def _reshape(self, node: fx.Node, x: Tensor, shape: Sequence[int]) -> Tensor:
        """A view where there is one, else a copy: of pixels, channels-last."""
        try:
            return x.view(shape)
        except RuntimeError:
            out, target = self._reshaped(node, x, shape)
        if copies_natively(x, target):
            moved = 2.0 * x.numel() * x.element_size()
            self._record(Call(node.name, "copy", "", 0.0, moved), pointwise.run, ([], target, x), {})
        else:
            self._copy_by_torch(node.name, x, target)
        return out

    def _reshaped(self, node: fx.Node, x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Memory for x in another shape, and the view of it to which x is copied."""
        for layout in self._layouts(node, len(shape)):
            made = torch.empty(x.shape, device="meta").view(shape).contiguous(memory_format=layout)
            try:
                made.view(x.shape)
            except RuntimeError:
                continue
            out = self.memory.empty(made.shape, made.stride(), x.dtype)
            return out, out.view(x.shape)
        raise AssertionError("contiguous memory can be viewed in any shape")

    def _layouts(self, node: fx.Node, axes: int) -> list[torch.memory_format]:
        pixels = axes == 4 and any(user.target in OF_PIXELS for user in node.users)
        return [torch.channels_last, torch.contiguous_format] if pixels else [torch.contiguous_format]

    def _cat(self, node: fx.Node, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """Copies each part to its place."""
        (made,) = (aten.cat.default([as_meta(part) for part in parts], dim),)
        out = self.memory.empty(made.shape, made.stride(), made.dtype)
        parts = [part for part in parts if part.numel()]
        places = out.split([part.shape[dim] for part in parts], dim)
        moved = 2.0 * out.numel() * out.element_size()
        call = Call(node.name, "cat", "", 0.0, moved)

        def copy_all() -> Tensor:
            for part, place in zip(parts, places, strict=True):
                pointwise.run([], place, part)
            return out

        return self._record(call, copy_all, (), {})

    def _torch(self, node: fx.Node, function: Any, args: Any, kwargs: Any, reason: str) -> Any:
        found = function(*map_values(args, as_meta), **map_values(kwargs, as_meta))
        several = isinstance(found, (tuple, list))
        read = items_read(node) if several else {0}
        out = [
            self.memory.empty(t.shape, t.stride(), t.dtype) if index in read else None
            for index, t in enumerate(found if several else [found])
        ]
        call = Call(node.name, name_of(node.target), described(out[min(read)]), reason=reason)
        self._run_by_torch(call, function, args, kwargs, out)
        return out if several else out[0]

    def _check_rank(self, node: fx.Node) -> None:
        value, traced = self._values[node], node.meta.get("val")
        if isinstance(value, Tensor) and isinstance(traced, Traced) and value.ndim != traced.ndim:
            raise RankError(f"{node.name} has {value.ndim} axes, was traced with {traced.ndim}")
