"""Recipes on text: a transformer and an LSTM over the characters of the King James Version.

The text comes from the Debian package bible-kjv, one verse a line:

    apt-get install -y bible-kjv
    bible -f "Gen1:1-Rev22:21" | sed -E 's/^[0-9A-Za-z]+:[0-9]+ //' > kjv.txt
    aigc-engine train text-transformer --data kjv.txt
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.evaluate.text import bits_per_character
from aigc_engine.models.lstm import LSTM
from aigc_engine.models.transformer import Transformer
from aigc_engine.train.task import Recipe

DATA = (
    "a text file, one verse a line: apt-get install bible-kjv; "
    "bible -f 'Gen1:1-Rev22:21' | sed -E 's/^[0-9A-Za-z]+:[0-9]+ //' > kjv.txt"
)
LINES_PER_GROUP, HELD_OUT_PER_GROUP = 1000, 25
CLIP = 1.0
LAST_RATE = 0.02


@dataclass(frozen=True)
class Settings:
    """Size of a run: `batch` windows of `length` characters a step, learning rates at their peak."""

    steps: int
    batch: int
    length: int
    warmup: int
    rate: float  # AdamW
    matrix_rate: float | None  # Muon for the matrices of the blocks; None leaves them to AdamW
    ema: float


TRANSFORMER = Settings(steps=1600, batch=8, length=256, warmup=50, rate=2e-3, matrix_rate=4e-3, ema=0.99)
LSTM_SETTINGS = Settings(steps=2500, batch=32, length=128, warmup=100, rate=4e-3, matrix_rate=None, ema=0.99)


def load_text(path: str | Path) -> tuple[str, str]:
    """Read a text and split it: the last 25 of every 1,000 lines are held out, so that all books are in both.

    Returns:
        (training text, held-out text).
    Raises:
        ValueError: no such file, not UTF-8, or fewer than 1,000 lines.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"train: data {str(path)!r} is not readable ({error}), expected {DATA}") from None
    if len(lines) < LINES_PER_GROUP:
        raise ValueError(
            f"train: data {str(path)!r} has {len(lines)} lines, expected at least 1000; give more text"
        )
    parts: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(lines):
        parts[number % LINES_PER_GROUP >= LINES_PER_GROUP - HELD_OUT_PER_GROUP].append(line)
    return "".join(parts[0]), "".join(parts[1])


class TextTask:
    """Next-character prediction on random windows, in bfloat16 autocast, cosine schedule."""

    storage = torch.float16
    exported: nn.Module

    def __init__(
        self,
        recipe: str,
        arch: type[nn.Module],
        config: dict[str, Any],
        settings: Settings,
        data: Path,
        seed: int,
    ) -> None:
        text, self.held_out = load_text(data)
        vocabulary = "".join(sorted({"\n", *text, *self.held_out}))
        index = {character: token for token, character in enumerate(vocabulary)}
        self.tokens = torch.tensor([index[character] for character in text])
        self.recipe, self.seed, self.settings = recipe, seed, settings
        self.total_steps, self.ema = settings.steps, settings.ema
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.exported = arch(vocabulary=vocabulary, **config)
        self.models = {"model": self.exported}
        self.optimizers = self._optimizers()
        self.config = {
            "family": "text",
            "arch": arch.__name__,
            "config": {"vocabulary": vocabulary, **config},
        }
        self.card = {
            "Data": f"{len(text):,} characters of the King James Version, one verse a line, from the Debian "
            f"package bible-kjv; {len(self.held_out):,} (the last 25 of every 1,000 verses) are held out",
            "Licence": "the text (1611) is in the public domain; the weights have the package's licence",
            "Made by": f"`aigc-engine train {recipe} --data kjv.txt`; kjv.txt: `apt-get install bible-kjv`, "
            "`bible -f 'Gen1:1-Rev22:21' | sed -E 's/^[0-9A-Za-z]+:[0-9]+ //' > kjv.txt`",
            "Training": f"{settings.batch} windows of {settings.length} characters a step, "
            f"{'Muon and AdamW' if settings.matrix_rate else 'AdamW'}, bfloat16 autocast",
        }

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Muon (https://kellerjordan.github.io/posts/muon/) for the blocks' matrices, AdamW for all else."""
        named = list(self.exported.named_parameters())
        matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
        if self.settings.matrix_rate is None:
            matrices = []
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(
                rest, lr=self.settings.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            )
        }
        if self.settings.matrix_rate is not None:
            optimizers["muon"] = torch.optim.Muon(
                matrices,
                lr=self.settings.matrix_rate,
                momentum=0.95,
                weight_decay=0.1,
                adjust_lr_fn="match_rms_adamw",
            )
        return optimizers

    def _schedule(self, step: int) -> None:
        settings = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        factor = min(1.0, (step + 1) / settings.warmup) * (LAST_RATE + (1 - LAST_RATE) * cosine)
        for name, optimizer in self.optimizers.items():
            peak = settings.rate if name == "adamw" else settings.matrix_rate
            for group in optimizer.param_groups:
                group["lr"] = factor * (peak or 0.0)

    def _batch(self) -> Tensor:
        length = self.settings.length
        starts = torch.randint(len(self.tokens) - length, (self.settings.batch,))
        return self.tokens[starts[:, None] + torch.arange(length + 1)]

    def train_step(self, step: int) -> dict[str, float]:
        self._schedule(step)
        windows = self._batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.exported(windows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.exported.parameters(), CLIP)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return {"bits": loss.item() / math.log(2)}

    def measure(self, model: nn.Module) -> dict[str, str]:
        return {"Held-out bits per character": f"{bits_per_character(model, self.held_out):.3f}"}


def _transformer(data: Path, seed: int) -> TextTask:
    config = {"context": 256, "width": 192, "depth": 4, "heads": 3, "variant": "llama"}
    return TextTask("text-transformer", Transformer, config, TRANSFORMER, data, seed)


def _lstm(data: Path, seed: int) -> TextTask:
    config = {"embedding_dim": 64, "hidden": 256, "depth": 1}
    return TextTask("text-lstm", LSTM, config, LSTM_SETTINGS, data, seed)


RECIPES = (
    Recipe(
        "text-transformer", "decoder-only transformer over characters, 1.8 M parameters", DATA, _transformer
    ),
    Recipe("text-lstm", "LSTM over characters, 0.35 M parameters", DATA, _lstm),
)
