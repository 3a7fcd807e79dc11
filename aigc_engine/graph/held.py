"""A plan that is run by parts: once what stays the same over many calls, then the rest as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from aigc_engine.graph.capture import Capture
from aigc_engine.graph.constants import Constants
from aigc_engine.graph.passes.hoist import needs
from aigc_engine.graph.plan import Plan
from aigc_engine.graph.traced import Traced
from aigc_engine.graph.values import ancestors

MOST_BYTES = 256 << 20  # of tables


@dataclass
class Held:
    """A plan that nothing else uses meanwhile, and the arguments for which it was made.

    Args:
        given: flat arguments as they were passed.
        leaves: the same as the plan takes them.
        lower: the plan that gives these nodes' values for other arguments and symbols.
    """

    plan: Plan
    capture: Capture
    constants: Constants
    given: Sequence[Any]
    leaves: list[Any]
    lower: Callable[[list[Any], dict[str, int], Sequence[fx.Node]], Plan]

    def place(self, argument: Tensor) -> int:
        """Where among the flat arguments this one is."""
        return next(place for place, leaf in enumerate(self.given) if leaf is argument)

    def run_without(self, place: int) -> None:
        """Runs what follows neither from the first argument nor from the one at this place."""
        for step in self.plan.enter(self.leaves, self.constants.changes):
            if step.needs is not None and place not in step.needs:
                step.run()

    def over(self, place: int, values: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        """What the plan holds that follows from the argument at `place`, for many of its values at once.

        Computed as rows of one batch: products read their weights once.

        Args:
            values: (E, n) in place of the argument (n,).

        Returns:
            The plan's tensors (n, ...), each with what it is for each value, (E, n, ...); None where these
            don't have the rows of the argument, or would be large.
        """
        found = needs(self.capture)
        nodes = [node for node in self.plan.held if place in (found[node] or ())]
        targets = [self.plan.held[node] for node in nodes]
        if any(target.shape[:1] != values.shape[1:] for target in targets):
            return None
        if len(values) * sum(target.nbytes for target in targets) > MOST_BYTES:
            return None
        leaves = self._repeated(place, values, nodes)
        symbols = None if leaves is None else self.capture.symbols(leaves, self.capture.in_spec)
        if leaves is None or symbols is None:
            return None
        key = place, values.shape
        if self.plan.ahead is None or self.plan.ahead[0] != key:
            self.plan.ahead = key, self.lower(leaves, symbols, nodes)
        results = self.plan.ahead[1].run(leaves, self.constants.changes)
        wanted = [(values.numel(), *target.shape[1:]) for target in targets]
        if [result.shape for result in results] != wanted:
            return None
        tables = [result.unflatten(0, values.shape) for result in results]
        return list(zip(targets, tables, strict=True))

    def _repeated(self, place: int, values: Tensor, nodes: Sequence[fx.Node]) -> list[Any] | None:
        """Arguments with E times the rows; those that these nodes don't follow from have no values."""
        taken = self.capture.taken[place]
        rows = taken.shape[0] if isinstance(taken, Traced) and taken.ndim else None
        if not isinstance(rows, str):
            return None
        leaves, read = list(self.leaves), ancestors(nodes)
        for index, (leaf, traced) in enumerate(zip(leaves, self.capture.taken, strict=True)):
            if not isinstance(traced, Traced) or traced.shape[:1] != (rows,):
                continue
            if self.capture.inputs[index] in read:
                leaves[index] = leaf.expand(len(values), *leaf.shape).flatten(0, 1)
            else:
                leaves[index] = leaf.new_empty(()).expand(values.numel(), *leaf.shape[1:])
        leaves[place] = values.flatten().to(self.leaves[place].dtype)
        return leaves
