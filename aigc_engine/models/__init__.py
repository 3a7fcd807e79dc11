"""Small complete networks. `ARCHITECTURES` maps the `arch` of a config.json to the class that is built."""

from __future__ import annotations

from importlib import import_module

from torch import nn

ARCHITECTURES: dict[str, str] = {
    "Classifier": "aigc_engine.models.classifier",
    "DCGANGenerator": "aigc_engine.models.gan",
    "LSTM": "aigc_engine.models.lstm",
    "MLPGenerator": "aigc_engine.models.gan",
    "Transformer": "aigc_engine.models.transformer",
    "UNet": "aigc_engine.models.unet",
    "VAE": "aigc_engine.models.vae",
}


def architecture(name: str) -> type[nn.Module]:
    """The class called `name`; ValueError if there is none."""
    if name not in ARCHITECTURES:
        raise ValueError(f"load: arch {name!r}, expected one of {sorted(ARCHITECTURES)}; check config.json")
    cls: type[nn.Module] = getattr(import_module(ARCHITECTURES[name]), name)
    return cls
