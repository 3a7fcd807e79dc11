"""What a graph takes from its module: parameters as they are, what follows from them alone, packed weights.

Plans hold addresses of these. So a change in place is followed in place: whatever was computed or packed
from the changed tensor is written anew where it was. A parameter that was replaced has moved, and plans are
made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from aigc_engine import ops
from aigc_engine.graph.capture import Capture
from aigc_engine.graph.offload import Offloaded
from aigc_engine.ops.packing import QUANTIZED
from aigc_engine.packed import PackedWeight, product_of, version_of

PACKS: Mapping[str, tuple[Callable[..., PackedWeight], tuple[str, ...]]] = {
    "conv1d": (ops.pack_conv1d, ("groups",)),
    "conv2d": (ops.pack_conv2d, ("groups",)),
    "conv3d": (ops.pack_conv3d, ()),
    "conv_transpose2d": (ops.pack_conv_transpose2d, ("stride",)),
    "linear": (ops.pack_linear, ()),
}
FEWEST = 32  # channels of either side, for a weight to be quantised: fewer save no time


@dataclasses.dataclass
class _Seen:
    """A tensor of the module's as plans know it."""

    owner: Mapping[str, Any]
    key: str
    tensor: Tensor
    address: int
    stamp: int


class Constants:
    """Values of a capture's static nodes.

    Args:
        offloaded: where the module's weights are, if they needn't stay in memory once packed.
    """

    def __init__(self, module: nn.Module, capture: Capture, offloaded: Offloaded | None = None) -> None:
        self._module = module
        self._capture = capture
        self._offloaded = offloaded
        self.static = static_nodes(capture)
        self.changes = 0  # how often tensors were followed
        self._seen: dict[fx.Node, _Seen] = {}
        self._derived: dict[fx.Node, Tensor] = {}
        self._packed: dict[tuple[Any, ...], PackedWeight] = {}
        self._kinds: dict[fx.Node, Tensor] = {}  # what weights are like, without their values
        self._sources: dict[fx.Node, frozenset[fx.Node]] = {}

    def value(self, node: fx.Node) -> Any:
        """The tensor of a static node, at an address that stays."""
        if node.op == "placeholder":
            return self._seen[node].tensor if node in self._seen else self._look(node)
        if node not in self._derived:
            self._derived[node] = self._compute(node, self.value)
        return self._derived[node]

    def packed(
        self, node: fx.Node, op: str, options: Mapping[str, Any], quantize: str | None = None
    ) -> PackedWeight | Tensor:
        """A weight as the native kernel wants it; the plain tensor where it can't be packed."""
        weight = None
        if node not in self._kinds:
            weight = self._weight(node)
            self._kinds[node] = torch.empty_like(weight, device="meta")
        kind = self._kinds[node]
        if kind.dtype not in (torch.float32, torch.bfloat16):
            return self.value(node)
        names = PACKS[op][1]
        layout = {name: options[name] for name in names if name in options}
        product = quantize if quantize and _gains(op, kind, **layout) else product_of(op, kind, None)
        key = (node, op, tuple(map(str, layout.items())), product)
        if key not in self._packed:
            weight = self._weight(node) if weight is None else weight
            self._packed[key] = self._pack(node, op, weight, product, layout)
        return self._packed[key]

    def _pack(
        self, node: fx.Node, op: str, weight: Tensor, product: str, layout: Mapping[str, Any]
    ) -> PackedWeight:
        how = {"quantize": product} if product in QUANTIZED else {"precision": _precision(product)}
        packed = self._slim(node, PACKS[op][0](weight, **how, **layout))
        if self._offloaded is not None:
            for source in self._from(node):
                self._offloaded.release(self._seen[source].tensor)
        return packed

    def _weight(self, node: fx.Node) -> Tensor:
        """A weight to be packed; what is computed for that alone isn't kept."""
        kept = node.op == "placeholder" or node in self._derived
        return self.value(node) if kept else self._compute(node, self._weight)

    def _slim(self, node: fx.Node, weight: PackedWeight) -> PackedWeight:
        """Without the plain weight where that was computed for this and the kernels never read it."""
        if node.op == "placeholder" or weight.data is None or weight.packs_again:
            return weight
        stub = torch.empty(1, dtype=weight.dtype).expand(weight.shape)
        return dataclasses.replace(weight, source=stub, version=version_of(stub))

    def refresh(self) -> bool:
        """Follows what changed in the module; False where a tensor has moved and plans must be made again."""
        changed = set()
        for node, seen in self._seen.items():  # before every call: 0.2 us a tensor
            now = seen.owner[seen.key]
            if now is not seen.tensor or now.data_ptr() != seen.address:
                return False
            if _stamp(now) != seen.stamp:
                changed.add(node)
        if changed:
            self._follow(changed)
        return True

    def fits(self) -> bool:
        """Whether the module's tensors still are what the graph was captured with."""
        for node, seen in self._seen.items():
            now, traced = seen.owner.get(seen.key), node.meta["val"]
            if now is None or now.dtype != traced.dtype or tuple(now.shape) != traced.shape:
                return False
        return True

    def _follow(self, changed: set[fx.Node]) -> None:
        self.changes += 1
        for node, value in self._derived.items():  # in the order in which they follow from each other
            if self._from(node) & changed:
                new = self._compute(node, self.value)
                if isinstance(value, Tensor) and new.data_ptr() != value.data_ptr():
                    value.copy_(new)
        for key, old in self._packed.items():
            if self._from(key[0]) & changed:
                layout = {name: getattr(old, name) for name in PACKS[key[1]][1]}
                new = self._pack(key[0], key[1], self._weight(key[0]), old.product, layout)
                self._packed[key] = old.renewed(new)
        for node in changed:
            self._seen[node].stamp = _stamp(self._seen[node].tensor)

    def _from(self, node: fx.Node) -> frozenset[fx.Node]:
        """The placeholders that a static node follows from."""
        if node.op == "placeholder":
            return frozenset([node])
        if node not in self._sources:
            self._sources[node] = frozenset().union(*map(self._from, node.all_input_nodes))
        return self._sources[node]

    def _compute(self, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), read)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def _look(self, node: fx.Node) -> Tensor:
        source = self._capture.sources[node.name]
        if source.value is not None:
            owner: Mapping[str, Any] = {source.name: source.value}
            key = source.name
        else:
            path, _, key = source.name.rpartition(".")
            holder = self._module.get_submodule(path)
            owner = holder._parameters if key in holder._parameters else holder._buffers
        tensor = owner[key]
        self._seen[node] = _Seen(owner, key, tensor, tensor.data_ptr(), _stamp(tensor))
        return tensor


def _stamp(tensor: Tensor) -> int:
    """Another number after a change: PyTorch's count; the sum of all bits where it counts none."""
    if not tensor.is_inference():
        return tensor._version
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(tensor.itemsize, torch.int64)
    return int(tensor.detach().reshape(-1).view(integers).sum(dtype=torch.int64))


def _gains(op: str, weight: Tensor, groups: int = 1, **layout: Any) -> bool:
    """Whether int8 is worth its error."""
    return op in ("linear", "conv2d") and groups == 1 and min(weight.shape[:2]) >= FEWEST


def _precision(product: str) -> str:
    return {"float32": "highest", "split": "high", "bfloat16": "medium"}[product]


def static_nodes(capture: Capture) -> set[fx.Node]:
    """Nodes that follow from the module's tensors alone, whatever the arguments and their sizes."""
    found = {node for node in capture.graph.nodes if node.name in capture.sources}
    for node in capture.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and found.issuperset(inputs) and repeatable(node):
            found.add(node)
    return found


def repeatable(node: fx.Node) -> bool:
    """Whether the same arguments give the same value each time."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags
