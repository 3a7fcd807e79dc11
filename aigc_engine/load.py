"""From a checkpoint to the sampler of its family."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from aigc_engine import zoo

FAMILIES = {
    "diffusion": "aigc_engine.diffusion:DiffusionSampler",
    "gan": "aigc_engine.gan:GanSampler",
    "text": "aigc_engine.autoregressive:TextSampler",
    "vae": "aigc_engine.vae:VaeSampler",
}


class Sampler(Protocol):
    """What `load` gives: `sample(n=..., seed=..., ...)`, with the options of the model's family.

    Images come as a float32 tensor (n, C, H, W) in [-1, 1], text as a list of n str. n samples with `seed=s`
    equal n single calls with seeds s, s + 1, ... bit for bit. A sampler keeps no state: threads may share it.
    """

    @property
    def sample(self) -> Callable[..., Any]:
        """Samples; `help(sampler.sample)` lists the options."""


def load(name_or_path: str | Path) -> Sampler:
    """Loads a model, ready to be sampled.

    Args:
        name_or_path: a name of the zoo (`aigc_engine.zoo.names()`), or a checkpoint folder with
            model.safetensors and config.json. Nothing in a checkpoint is executed; a pickle is refused.

    Returns:
        DiffusionSampler, GanSampler, VaeSampler or TextSampler, by the family that config.json names.

    Raises:
        ValueError: unknown name, a damaged or foreign checkpoint, or a family without a sampler.
    """
    return sampler_of(zoo.load(name_or_path))


def sampler_of(checkpoint: zoo.Checkpoint) -> Sampler:
    """The sampler of a loaded checkpoint; ValueError if its family has none."""
    if checkpoint.family not in FAMILIES:
        raise ValueError(
            f"load: {checkpoint.name} is of family {checkpoint.family!r}, expected {sorted(FAMILIES)}; "
            "aigc_engine.zoo.load gives any model"
        )
    module, name = FAMILIES[checkpoint.family].split(":")
    return getattr(import_module(module), name).from_checkpoint(checkpoint)
