"""What a recipe gives to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


class Task(Protocol):
    """One training run. Everything that changes from step to step is a function of (seed, step).

    The loop seeds torch's default generator with (seed, step) before every `train_step`, so a task may draw
    from it freely (noise, dropout, augmentation) and is still resumed exactly.
    """

    recipe: str  # name of the recipe
    seed: int
    total_steps: int
    models: dict[str, nn.Module]  # all that is trained, by name
    optimizers: dict[str, torch.optim.Optimizer]
    exported: nn.Module  # one of `models`; the moving average of its weights is what gets saved
    ema: float  # decay of that average; 0 saves the last weights
    storage: torch.dtype  # floating-point type of the saved weights
    config: dict[str, Any]  # contents of config.json: family, arch, config, and what the sampler needs
    card: dict[str, str]  # lines of the model card: data, licence, ...

    def train_step(self, step: int) -> dict[str, float]:
        """Do step `step` (0-based), learning rate included; return the numbers for the progress bar."""
        ...

    def measure(self, model: nn.Module) -> dict[str, str]:
        """Measure the finished model (`exported` with the averaged weights, eval mode) for the card.

        What is computed from the finished weights, and not trained, is put into the model first.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """A named way to train one zoo model: `make_task(data_path, seed)` builds the task."""

    name: str
    description: str
    data: str  # what `data_path` has to be
    make_task: Callable[[Path, int], Task]
