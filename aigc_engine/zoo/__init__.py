"""The bundled checkpoints, and the format of a checkpoint: a folder with three files.

`model.safetensors` holds the weights, `config.json` what is needed to build and sample the model
({"family", "arch", "config", ...}), `README.md` the model card. Nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

from aigc_engine.zoo.checkpoint import Checkpoint, load, load_model, names, save
from aigc_engine.zoo.files import replacing

__all__ = ["Checkpoint", "load", "load_model", "names", "replacing", "save"]
