"""What the sampler asks of a language model, and the part of a text that a model with a limit sees."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class LanguageModel(Protocol):
    """A model of the next character; `models.transformer.Transformer` and `models.lstm.LSTM` are such."""

    vocabulary: str
    context: int | None  # most characters it can look back on; None: no limit

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the next character at every position of tokens (B, T)."""

    def start(self, rows: int) -> Any:
        """The state of `rows` texts of which nothing has been read; it has `select(rows)`."""

    def prefill(self, state: Any, rows: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        """Read texts (R, T) of these lengths (R,) into these rows of the state, from their beginning."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Read one more token (B,) of every row; logits (B, V) of the next."""


def window_start(length: int, context: int | None) -> int:
    """Index of the first of `length` characters that the model sees.

    A window that has run full is cut to its last half and grows again: it rolls once in about half a context,
    and what a cache holds stays valid in between.
    """
    if context is None or length <= context:
        return 0
    hop = context + 1 - max(1, context // 2)
    return -((context - length) // hop) * hop


def bucket(length: int, context: int) -> int:
    """The padded size at which a window of this length is read: a function of nothing but its length."""
    return min(context, max(16, 1 << (length - 1).bit_length()))
