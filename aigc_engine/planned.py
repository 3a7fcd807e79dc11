"""A checkpoint's network as plans of the graph that is kept beside its weights: sampling needs no capture.

`make graphs` writes those of the zoo anew, after a change of a model or of how graphs are fused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc_engine import capability, zoo
from aigc_engine.dispatch import UnsupportedError
from aigc_engine.graph import Accelerated
from aigc_engine.graph.accelerated import DEFAULT
from aigc_engine.graph.options import Options
from aigc_engine.models.vae import Decoder

GRAPH = "graph.safetensors"


class Planned:
    """A network that runs as plans where it can.

    Args:
        network: in eval mode, or what `accelerate` makes of one.
        reason: why it isn't accelerated, if it isn't.
    """

    def __init__(self, network: nn.Module | Accelerated, reason: str = "") -> None:
        self._plans = network if isinstance(network, Accelerated) else None
        self.module: Any = network.module if isinstance(network, Accelerated) else network
        self._reason = reason or f"no {GRAPH} was loaded for it"

    def chosen(self) -> tuple[Any, str]:
        """Who computes now: plans, or the module, and why."""
        device = next(self.module.parameters()).device
        if self._plans is None:
            return self.module, self._reason
        if device.type != "cpu":
            return self.module, f"it's on {device}, and plans are for the CPU"
        if torch.is_autocast_enabled("cpu"):
            return self.module, "inside torch.autocast"
        return self._plans, ""

    def explain(self) -> str:
        """How calls run: as which plan, or why op by op."""
        network, reason = self.chosen()
        if network is self.module:
            return f"calls of {type(self.module).__name__} run op by op: {reason}"
        return str(network.explain()) if network.called else "plans, made at the first call"


def planned(checkpoint: zoo.Checkpoint, options: Options = DEFAULT) -> Planned:
    """The network of a checkpoint's sampler as plans, if its graph lies beside the weights and fits here.

    With options of `accelerate` it's captured at the first call where there's no such graph.

    Raises:
        UnsupportedError: options, and no native module.
    """
    network, _ = _network(checkpoint)
    path, chosen = checkpoint.path / GRAPH, options != DEFAULT
    missing = capability.native_missing()
    if missing is not None and chosen:
        raise UnsupportedError(f"accelerate: {missing}")
    reason = missing or ("" if path.is_file() else f"{checkpoint.name} has no {GRAPH}")
    fast = Accelerated(network, options, quiet=True)  # the sampler explains itself
    if not reason and options.dtype is None:  # graphs are kept in the weights' own
        try:
            fast.load(path)
        except ValueError as error:
            reason = str(error)
    return Planned(network, reason) if reason and not chosen else Planned(fast)


def keep_graph(checkpoint: zoo.Checkpoint) -> Path | None:
    """Captures the network of a checkpoint's sampler and writes its graph into the folder.

    Returns:
        The file; None for families whose samplers run no plans.
    """
    if checkpoint.family not in ("diffusion", "vae") or capability.native_missing() is not None:
        return None
    network, example = _network(checkpoint)
    fast = Accelerated(network, quiet=True)
    fast(*example)
    path = checkpoint.path / GRAPH
    fast.save(path)
    return path


def _network(checkpoint: zoo.Checkpoint) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What a sampler calls, and arguments that it can be called with."""
    model: Any = checkpoint.model
    if checkpoint.family == "vae":
        return Decoder(model).eval(), (torch.zeros(2, model.config.latent),)
    config = model.config
    x = torch.zeros(2, config.channels, config.image_size, config.image_size)
    return model, (x, torch.zeros(2), torch.zeros(2, dtype=torch.long))
