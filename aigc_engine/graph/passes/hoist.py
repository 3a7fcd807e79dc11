"""What doesn't follow from the first argument comes first, so that a plan can leave it out.

A sampler calls a network with a new image each time, but the same prompt. `needs` says of each node which
of the other arguments it follows from; a plan runs a node with needs only when one of these has changed.
"""

from __future__ import annotations

from torch import Tensor, fx

from aigc_engine.graph.capture import Capture
from aigc_engine.graph.constants import repeatable
from aigc_engine.graph.passes.edit import aten
from aigc_engine.graph.traced import Traced

Needs = frozenset[int] | None  # places among the flat arguments; None for what runs in every call


def needs(capture: Capture) -> dict[fx.Node, Needs]:
    """Of each node, which arguments' values it follows from; None if the first tensor's is one of them."""
    found: dict[fx.Node, Needs] = {}
    inputs = {node: place for place, node in enumerate(capture.inputs)}
    first = next((place for place, taken in enumerate(capture.taken) if _is_tensor(taken)), None)
    for node in capture.graph.nodes:
        if node.op == "placeholder":
            place = inputs.get(node)
            found[node] = frozenset() if place is None else None if place == first else frozenset([place])
        elif node.target is aten.sym_size.int and node.args[0].op == "placeholder":
            found[node] = frozenset()  # sizes are known before values, but of no node before the node itself
        else:
            found[node] = _joined([found[read] for read in node.all_input_nodes])
            if node.op == "output" or not repeatable(node):
                found[node] = None
    return found


def _is_tensor(taken: object) -> bool:
    return isinstance(taken, (Tensor, Traced))


def _joined(parts: list[Needs]) -> Needs:
    joined: set[int] = set()
    for part in parts:
        if part is None:
            return None
        joined |= part
    return frozenset(joined)


def hoist(capture: Capture) -> None:
    """Orders nodes by their needs, fewest first; those that run in every call come last."""
    found = needs(capture)
    nodes = [node for node in capture.graph.nodes if node.op == "call_function"]
    (output,) = (node for node in capture.graph.nodes if node.op == "output")

    def rank(node: fx.Node) -> tuple[bool, int, list[int]]:
        need = found[node]
        return (True, 0, []) if need is None else (False, len(need), sorted(need))

    for node in sorted(nodes, key=rank):
        output.prepend(node)


def kept_between_calls(found: dict[fx.Node, Needs], node: fx.Node) -> bool:
    """Whether a value has to be there when what makes it is left out: for others, or to see if it changed."""
    if found[node] is None:
        return False
    return node.op == "placeholder" or any(found[user] != found[node] for user in node.users)
