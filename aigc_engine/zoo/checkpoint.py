"""Saving and loading checkpoints: weights only, checked completely before a model is returned."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from aigc_engine.models import architecture
from aigc_engine.zoo.files import replacing

FOLDER = Path(__file__).parent
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model (float32, eval mode, no gradients) with the contents of its config.json."""

    name: str
    path: Path
    config: dict[str, Any]
    model: nn.Module

    @property
    def family(self) -> str:
        return str(self.config["family"])


def names() -> list[str]:
    """The bundled checkpoints, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def load_model(name_or_path: str | Path) -> nn.Module:
    """The model of a checkpoint: `load(name_or_path).model`."""
    return load(name_or_path).model


def load(name_or_path: str | Path) -> Checkpoint:
    """Load a checkpoint of the zoo by name, or any checkpoint folder by path.

    Args:
        name_or_path: a name in `names()`, or a folder with model.safetensors and config.json, or that
            model.safetensors itself.
    Raises:
        ValueError: unknown name, a pickle (.pt, .pth, .ckpt, .bin: those can run code when they are read),
            a truncated or damaged file, weights whose names or shapes do not fit the architecture.
    """
    folder = _folder(name_or_path)
    config = _read_config(folder / CONFIG)
    tensors = _read_weights(folder / WEIGHTS)
    model = _build(config)
    _fill(model, tensors, folder / WEIGHTS)
    return Checkpoint(folder.name, folder, config, model.requires_grad_(False).eval())


def save(
    folder: str | Path,
    model: nn.Module,
    config: dict[str, Any],
    *,
    storage: torch.dtype = torch.float32,
    card: dict[str, str],
    metrics: dict[str, str],
) -> None:
    """Write a checkpoint folder; every file is written beside its place and then renamed.

    Args:
        folder: made if missing; its name is the title of the card.
        model: the weights; tied ones are written once.
        config: contents of config.json: {"family", "arch", "config", ...}.
        storage: floating-point type on disk; integers stay as they are.
        card: lines of the model card, by heading.
        metrics: measured numbers, by name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.detach().to(storage) if t.is_floating_point() else t.detach()).contiguous().clone()
        for name, t in _tensors(model).items()
    }
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(serialize(tensors))
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    with replacing(folder / CARD) as temporary:
        temporary.write_text(_card(folder.resolve().name, model, config, storage, card, metrics))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each shared one under its first name only."""
    state = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def _folder(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"load: name_or_path {str(path)!r} is a pickle, expected a checkpoint folder with {WEIGHTS}; "
            "reading a pickle can run code, convert the weights to safetensors first"
        )
    if str(name_or_path) in names():
        return FOLDER / str(name_or_path)
    if path.is_file() and path.name == WEIGHTS:
        return path.parent
    if not path.is_dir():
        raise ValueError(
            f"load: name_or_path {str(name_or_path)!r} is neither a zoo name nor a folder, "
            f"expected one of {names()} or a checkpoint folder; check the spelling"
        )
    return path


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"load: name_or_path {str(path.parent)!r} has no {CONFIG}; copy the whole folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load: {str(path)!r} is not JSON ({error}); copy the checkpoint again") from None
    if not isinstance(config, dict) or not {"family", "arch", "config"} <= config.keys():
        raise ValueError(
            f"load: {str(path)!r} has other keys, expected family, arch and config; copy the checkpoint again"
        )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in PICKLES)
        reason = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
        raise ValueError(
            f"load: name_or_path {str(path.parent)!r} has no {WEIGHTS}{reason}; "
            "save the weights as safetensors"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"load: {str(path)!r} is truncated, damaged or not safetensors ({error}); "
            "copy the checkpoint again"
        ) from None


def _build(config: dict[str, Any]) -> nn.Module:
    cls = architecture(config["arch"])
    try:
        return cls(**config["config"])
    except TypeError as error:
        raise ValueError(f"load: config does not fit {config['arch']} ({error}); check {CONFIG}") from None


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    expected = _tensors(model)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"load: {str(path)!r} has wrong keys (missing {missing[:4]}, unknown {unknown[:4]}), "
            f"expected the weights of {type(model).__name__}; use the config.json saved with these weights"
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"load: {str(path)!r} weight {name} {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}; use the config.json saved with these weights"
            )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def _card(
    name: str,
    model: nn.Module,
    config: dict[str, Any],
    storage: torch.dtype,
    card: dict[str, str],
    metrics: dict[str, str],
) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    stored = str(storage).removeprefix("torch.")
    lines = {
        "Family": str(config["family"]),
        "Architecture": f"{config['arch']}, {parameters:,} parameters, stored as {stored}",
        **card,
        "Date": today,
    }
    text = f"# {name}\n\n" + "".join(f"- **{key}**: {value}\n" for key, value in lines.items())
    if metrics:
        text += "\n| measured | value |\n|---|---|\n"
        text += "".join(f"| {key} | {value} |\n" for key, value in metrics.items())
    return text
