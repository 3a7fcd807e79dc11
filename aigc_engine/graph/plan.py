"""A network for one shape: native calls and what torch does between them, over one arena."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from aigc_engine.graph.passes.hoist import Needs

if TYPE_CHECKING:
    from aigc_engine import _native


@dataclass
class Call:
    """A node of the graph in a plan: who runs it, and why it isn't native if it isn't."""

    name: str
    what: str
    shape: str
    flops: float = 0.0
    moved: float = 0.0
    reason: str = ""


@dataclass
class Native:
    """Recorded kernel calls; `ends[i]` of them belong to calls[: i + 1].

    Args:
        needs: places of the arguments on which the results depend; None: runs in every call.
    """

    needs: Needs
    recording: _native.Recording
    calls: list[Call] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def run(self) -> None:
        self.recording.run()

    def times(self) -> list[tuple[Call, float]]:
        """Seconds of each node."""
        spent, begin, found = self.recording.run_timed(), 0, []
        for call, end in zip(self.calls, self.ends, strict=True):
            found.append((call, sum(spent[begin:end]) * 1e-9))
            begin = end
        return found


@dataclass
class Torch:
    """A call of PyTorch's whose results go to the arena."""

    needs: Needs
    call: Call
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: list[Tensor | None]  # None: nobody reads it

    @property
    def calls(self) -> list[Call]:
        return [self.call]

    def run(self) -> None:
        out = _out_variant(self.function)
        if out is not None and len(self.out) == 1:
            out(*self.args, **self.kwargs, out=self.out[0])
            return
        result = self.function(*self.args, **self.kwargs)
        several = isinstance(result, (tuple, list))
        for target, value in zip(self.out, result if several else [result], strict=True):
            if target is not None:
                target.copy_(value)

    def times(self) -> list[tuple[Call, float]]:
        before = time.perf_counter()
        self.run()
        return [(self.call, time.perf_counter() - before)]


@functools.cache
def _out_variant(function: Any) -> Callable[..., Any] | None:
    """The overload of an aten function that writes its one result to `out`."""
    if not isinstance(function, torch._ops.OpOverload):
        return None
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        out = [a for a in arguments if a.is_out]
        others = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if len(out) == 1 and out[0].name == "out" and others == wanted:
            return overload
    return None


@dataclass
class Result:
    """A flat result: a tensor of the plan's, with the strides and dtype that eager gives, or a constant."""

    value: Any
    stride: tuple[int, ...] = ()
    dtype: torch.dtype | None = None

    def read(self) -> Any:
        if not isinstance(self.value, Tensor):
            return self.value
        out = torch.empty_strided(self.value.shape, self.stride, dtype=self.dtype)
        return out.copy_(self.value)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = _BITS.get(a.element_size())
    return bits is not None and torch.equal(a.view(bits), b.to(a.dtype).view(bits))


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Plan:
    """What `lower` makes of a graph for one shape.

    Args:
        inputs: where each flat argument goes, None for those that aren't read.
        steps: in order.
        results: flat.
        held: values that steps leave for later calls, by node.
        peak: bytes of the arena.
        total: bytes of all values, were there no arena.
        kept: what else the steps read.
        ahead: the latest plan for what these steps hold at many times, and for which.
    """

    inputs: list[Tensor | None]
    steps: list[Native | Torch]
    results: list[Result]
    held: dict[fx.Node, Tensor]
    peak: int
    total: int
    kept: list[Any]
    ahead: tuple[Any, Plan] | None = None

    def __post_init__(self) -> None:
        self._watched = frozenset[int]().union(*(step.needs or () for step in self.steps))
        self._weights: int | None = None  # as of which the held values are

    def run(self, leaves: Sequence[Any], weights: int) -> list[Any]:
        """The flat results for these flat arguments.

        Args:
            weights: another number than before if constants have changed since.
        """
        for step in self.enter(leaves, weights):
            step.run()
        self._weights = weights
        return [result.read() for result in self.results]

    def enter(self, leaves: Sequence[Any], weights: int) -> list[Native | Torch]:
        """Takes the arguments; the steps to run for them, others having been run for the same before.

        Held values count as of no arguments until `run` is through.
        """
        settled, self._weights = self._weights == weights, None
        changed = set()
        for place, (target, leaf) in enumerate(zip(self.inputs, leaves, strict=True)):
            if target is None or (settled and place in self._watched and _same_bits(target, leaf)):
                continue
            target.copy_(leaf)
            changed.add(place)
        return [step for step in self.steps if not settled or step.needs is None or step.needs & changed]

    @property
    def calls(self) -> list[Call]:
        """Every node that does something, in order."""
        return [call for step in self.steps for call in step.calls]

    def times(self, leaves: Sequence[Any], weights: int) -> list[tuple[Call, float]]:
        """Runs once, all of it; seconds of each node."""
        self._weights = None
        return [found for step in self.enter(leaves, weights) for found in step.times()]

    def __str__(self) -> str:
        left = [call for call in self.calls if call.reason]
        lines = [
            f"{len(self.calls)} nodes in {len(self.steps)} segments, {len(left)} left to torch; "
            f"{sum(call.flops for call in self.calls) / 1e9:.2f} GFLOP; arena {self.peak / 2**20:.1f} MiB "
            f"(values: {self.total / 2**20:.1f} MiB)"
        ]
        lines += [f"  {call.name}: {call.what} {call.shape}" for call in self.calls if not call.reason]
        lines += [f"  {call.name}: {call.what} {call.shape}, torch: {call.reason}" for call in left]
        return "\n".join(lines)
