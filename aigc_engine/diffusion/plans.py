"""The graph of a diffusion checkpoint's model, kept beside its weights: sampling then needs no capture.

`make graphs` writes those of the zoo anew, after a change of the model or of how graphs are fused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_engine import capability, zoo
from aigc_engine.graph import Accelerated

GRAPH = "graph.safetensors"


def keep_graph(checkpoint: zoo.Checkpoint) -> Path | None:
    """Captures a checkpoint's model and writes its graph into the folder; None for families without one."""
    if checkpoint.family != "diffusion" or capability.native_missing() is not None:
        return None
    fast = Accelerated(checkpoint.model, quiet=True)
    fast(*_example(checkpoint.model))
    path = checkpoint.path / GRAPH
    fast.save(path)
    return path


def planned(checkpoint: zoo.Checkpoint) -> tuple[Accelerated | None, str]:
    """The checkpoint's model with the graph that lies beside it; None where it can't be used, and why."""
    path = checkpoint.path / GRAPH
    if not path.is_file():
        return None, f"{checkpoint.name} has no {GRAPH}"
    if capability.native_missing() is not None:
        return None, str(capability.native_missing())
    fast = Accelerated(checkpoint.model, quiet=True)  # the sampler explains itself
    try:
        fast.load(path)
    except ValueError as error:
        return None, str(error)
    return fast, ""


def _example(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    config = model.config
    x = torch.zeros(2, config.channels, config.image_size, config.image_size)
    return x, torch.zeros(2), torch.zeros(2, dtype=torch.long)
