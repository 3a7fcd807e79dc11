"""Small graphs, fused and held to their modules: what tests of passes share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine.graph.capture import Capture, capture
from aigc_engine.graph.constants import Constants
from aigc_engine.graph.fuse import fuse
from aigc_engine.graph.lower import RESHAPES, SHAPED
from aigc_engine.graph.traced import Traced


class Net(nn.Module):
    """A few layers and a function of them."""

    def __init__(self, body: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor) -> Tensor:
        return self.body(self, *args)


def fused(net: nn.Module, *args: Tensor) -> Capture:
    leaves, spec = pytree.tree_flatten((args, {}))
    found = capture(net.eval(), leaves, spec)
    fuse(found)
    assert_equal(net, found, args)
    return found


def assert_equal(net: nn.Module, found: Capture, args: tuple[Tensor, ...]) -> None:
    """Interprets the fused graph, each op on its reference."""
    constants, values = Constants(net, found), {}
    values.update(zip(found.inputs, args, strict=True))
    with torch.no_grad():
        for node in found.graph.nodes:
            if node.name in found.sources:
                values[node] = constants.value(node)
            elif node.op == "call_function":
                call = getattr(node.target, "reference", node.target)
                call = torch.reshape if call in RESHAPES - SHAPED else call
                values[node] = call(
                    *torch.fx.map_arg(node.args, values.get), **torch.fx.map_arg(node.kwargs, values.get)
                )
            elif node.op == "output":
                (got,) = (values[item] for item in node.args[0])
        torch.testing.assert_close(got, net(*args), rtol=1e-4, atol=1e-5)


def targets(found: Capture) -> list[str]:
    """Names of what remains to be done on tensors for each call, in order."""
    constants = Constants(nn.Module(), found)
    names = []
    for node in found.graph.nodes:
        tensors = isinstance(node.meta.get("val"), Traced)
        if node.op == "call_function" and tensors and node not in constants.static:
            packet = getattr(node.target, "overloadpacket", node.target)
            names.append(getattr(packet, "__name__", str(packet)))
    return names


def options(found: Capture, op: object) -> dict:
    (node,) = (node for node in found.graph.nodes if node.target is op)
    return {
        key: value
        for key, value in node.kwargs.items()
        if key not in ("stride", "padding", "dilation", "groups")
    }


X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def conv(c_in: int = 8, c_out: int = 8, taps: int = 3, **more) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, taps, padding=taps // 2, **more)
