"""Casts of arguments as part of the copy by which a plan takes them."""

from __future__ import annotations

import torch
from torch import fx

from aigc_engine.graph.capture import Capture
from aigc_engine.graph.passes.edit import CASTS, aten, dtype, forward, insert, is_call, only_user

VIEWS = (
    aten.expand.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.view.default,
)


def cast_on_entry(capture: Capture) -> None:
    """A timestep of integers that does nothing but become float32: it does so when it's copied in."""
    for node in capture.inputs:
        chain: list[fx.Node] = []
        user = only_user(node)
        while user is not None and is_call(user, *VIEWS) and user.args[0] is (chain or [node])[-1]:
            chain.append(user)
            user = only_user(user)
        if user is None or not is_call(user, *CASTS) or dtype(user) != torch.float32:
            continue
        if dtype(node) not in (torch.int64, torch.int32, torch.float64):
            continue
        capture.casts[node.name] = torch.float32
        for view in chain:
            view.meta["val"] = view.meta["val"].float()
        # What reads the argument itself reads an alias: the placeholder keeps the dtype that's called with.
        chain = chain or [insert(user, aten.alias.default, (node,), {}, node.meta["val"].float())]
        forward(user, chain[-1])
