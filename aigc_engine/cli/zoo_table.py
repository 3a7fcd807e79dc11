"""`aigc-engine models`: the zoo as a table, read from files alone (no weights are loaded)."""

from __future__ import annotations

import json
import math

from rich.table import Table
from safetensors import safe_open

from aigc_engine import zoo
from aigc_engine.cli.console import escape
from aigc_engine.zoo.checkpoint import CARD, CONFIG, FOLDER, WEIGHTS


def table() -> Table:
    """One row per checkpoint, with the numbers that its card holds."""
    rows = Table("name", "family", "network", "parameters", "size", "measured")
    for name in zoo.names():
        folder = FOLDER / name
        config = json.loads((folder / CONFIG).read_text())
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.add_row(
            name,
            config["family"],
            config["arch"],
            f"{parameters(name):,}",
            f"{size / 1e6:.1f} MB",
            escape("\n".join(f"{what}: {value}" for what, value in metrics(name).items())),
            end_section=True,
        )
    return rows


def parameters(name: str) -> int:
    """Numbers stored in a checkpoint of the zoo."""
    with safe_open(FOLDER / name / WEIGHTS, framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a dict)


def metrics(name: str) -> dict[str, str]:
    """The measured numbers of a model card: the rows of its table."""
    found = {}
    for line in (FOLDER / name / CARD).read_text().splitlines():
        parts = [part.strip() for part in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(parts) == 2 and parts[0] not in ("measured", "---"):
            found[parts[0]] = parts[1]
    return found
