"""Quality of language models: bits per character on text that they weren't trained on."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import zoo

STATE_WINDOW = 512
WINDOWS_PER_CALL = 16


def held_out_text() -> str:
    """The held-out part of the King James Version that comes with the package (106 kB; see `train.text`)."""
    return (Path(zoo.__file__).parent / "held_out" / "kjv.txt").read_text(encoding="utf-8")


@torch.no_grad()
def bits_per_character(model: nn.Module, text: str) -> float:
    """Mean of -log2 p(character | characters before it), the text being taken to follow a newline.

    Windows overlap by half, and only the second half of each is counted (all of the first window), so every
    character beyond the first window is predicted from at least half a window of text.

    Args:
        model: a language model with `vocabulary` and `context` (None: no limit).
        text: not empty, of characters in the vocabulary.
    Returns:
        Bits per character.
    Raises:
        ValueError: `text` is empty or has a character that the model doesn't know.
    """
    index = {character: token for token, character in enumerate(model.vocabulary)}
    unknown = sorted(set(text) - index.keys())
    if not text or unknown:
        raise ValueError(
            f"bits_per_character: text with {len(text)} characters, unknown {unknown[:5]}, "
            "expected text in the model's vocabulary; replace those characters"
        )
    tokens = torch.tensor([index["\n"], *(index[character] for character in text)])
    window = int(model.context or STATE_WINDOW)
    hop = window // 2
    was_training = model.training
    model.eval()
    total = _nats(model, tokens[None, : window + 1], 0)
    starts = range(hop, len(tokens) - 1 - window + hop, hop)
    whole = [start for start in starts if start + window < len(tokens)]
    for i in range(0, len(whole), WINDOWS_PER_CALL):
        rows = [tokens[start : start + window + 1] for start in whole[i : i + WINDOWS_PER_CALL]]
        total += _nats(model, torch.stack(rows), window - hop)
    for start in starts[len(whole) :]:
        total += _nats(model, tokens[None, start:], window - hop)
    model.train(was_training)
    return total / math.log(2) / len(text)


def _nats(model: nn.Module, windows: Tensor, skip: int) -> float:
    """Sum of -ln p over the targets of `windows` (n, T + 1), the first `skip` of each left out."""
    logits = model(windows[:, :-1])[:, skip:]
    return float(
        F.cross_entropy(logits.flatten(0, 1).double(), windows[:, 1 + skip :].flatten(), reduction="sum")
    )
