"""A backend of torch.compile: `torch.compile(module, backend="aigc_engine")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from aigc_engine.graph.accelerated import Accelerated
from aigc_engine.graph.traced import expression


class _Traced(nn.Module):
    """What Dynamo traced, with its tensors of the module as tensors of its own, and without its sizes.

    Dynamo hands over parameters, buffers and sizes as arguments, beside those of the call.
    """

    def __init__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> None:
        super().__init__()
        self.graph = graph
        self.places: list[tuple[str, Any]] = []  # ("held", name), ("given", index) or ("size", (place, axis))
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        given = 0
        for place, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
            if isinstance(example, torch.SymInt):
                self.places.append(("size", _size(example, placeholders)))
            elif isinstance(example, Tensor) and _held(node):
                self.register_buffer(f"held{place}", example.detach(), persistent=False)
                self.places.append(("held", f"held{place}"))
            else:
                self.places.append(("given", given))
                given += 1
        self.eval()

    def forward(self, *given: Any) -> Any:
        values: list[Any] = [None] * len(self.places)
        for place, (kind, where) in enumerate(self.places):
            if kind != "size":
                values[place] = getattr(self, where) if kind == "held" else given[where]
        for place, (kind, where) in enumerate(self.places):
            if kind == "size":
                values[place] = values[where[0]].shape[where[1]]
        return self.graph(*values)

    def given(self, arguments: Sequence[Any]) -> list[Any]:
        """The call's own arguments; parameters that were replaced are taken over."""
        found = []
        for (kind, where), value in zip(self.places, arguments, strict=True):
            if kind == "given":
                found.append(value)
            elif kind == "held" and value.data_ptr() != self._buffers[where].data_ptr():
                self._buffers[where] = value.detach()
        return found


def _held(node: fx.Node) -> bool:
    """Whether a placeholder is a parameter or a buffer of the module."""
    grapharg = node.meta.get("grapharg")
    source = grapharg.source.name if grapharg is not None else ""
    source = source() if callable(source) else source
    return "_parameters[" in source or "_buffers[" in source


def _size(symbol: torch.SymInt, placeholders: Sequence[fx.Node]) -> tuple[int, int]:
    """Of which argument, and along which axis, this is the size."""
    for place, node in enumerate(placeholders):
        value = node.meta.get("example_value")
        for axis, size in enumerate(getattr(value, "shape", ())):
            if str(expression(size)) == str(expression(symbol)):
                return place, axis
    raise NotImplementedError(
        f"aigc_engine: {symbol} isn't the size of an argument; use accelerate() instead"
    )


def compile_graph(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """Runs a graph of Dynamo's as native plans where no gradient is needed, else as it is."""
    module = _Traced(graph, examples)
    fast = Accelerated(module, patient=True)

    def run(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in arguments
        ):
            return graph(*arguments)
        return fast(*module.given(arguments))

    return run
