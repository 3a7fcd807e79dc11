"""LSTM language model over characters.

References: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, https://doi.org/10.1162/neco.1997.9.8.1735
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aigc_engine.models.layers import rowwise_linear


@dataclass
class LSTMState:
    """Output h and cell c of every layer, (depth, B, H)."""

    h: Tensor
    c: Tensor

    def select(self, rows: Tensor) -> LSTMState:
        """The state of these rows only."""
        return LSTMState(self.h[:, rows], self.c[:, rows])


class LSTM(nn.Module):
    """Logits of the next character at every position: `forward(tokens (B, T)) -> (B, T, V)`, from zeros.

    Args:
        vocabulary: the characters; token v is `vocabulary[v]`.
        embedding_dim: width of the input. hidden: H, width of the state. depth: layers.
    """

    context = None

    def __init__(self, vocabulary: str, embedding_dim: int = 64, hidden: int = 256, depth: int = 1) -> None:
        super().__init__()
        self.vocabulary, self.hidden, self.depth = vocabulary, hidden, depth
        self.embed = nn.Embedding(len(vocabulary), embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden, depth, batch_first=True)
        self.head = nn.Linear(hidden, len(vocabulary))
        # sigmoid(z) = tanh(z / 2) / 2 + 1/2 turns the gates i, f, g, o into one tanh between scalings; tanh
        # has the same bits wherever an element lies in a vector, sigmoid hasn't.
        scale = torch.tensor([0.5, 0.5, 1.0, 0.5]).repeat_interleave(hidden)
        self.register_buffer("gate_scale", scale, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        logits: Tensor = self.head(states)
        return logits

    def start(self, rows: int) -> LSTMState:
        """The zero state for `rows` texts."""
        zero = self.head.weight.new_zeros(self.depth, rows, self.hidden)
        return LSTMState(zero, zero.clone())

    def prefill(self, state: LSTMState, rows: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        """Read texts from their beginning: what `rows` (R,) of the state held is replaced.

        Args:
            tokens: (R, T), padded on the right by any token; lengths: (R,), at most T.
        """
        new = self.start(len(rows))
        for t in range(tokens.shape[1]):
            h, c = self._advance(tokens[:, t], new)
            reading = (t < lengths)[:, None]
            new = LSTMState(torch.where(reading, h, new.h), torch.where(reading, c, new.c))
        state.h[:, rows], state.c[:, rows] = new.h, new.c

    def step(self, tokens: Tensor, state: LSTMState) -> Tensor:
        """Read one more token of each row, tokens (B,), and give the logits (B, V) of the next."""
        state.h, state.c = self._advance(tokens, state)
        return rowwise_linear(state.h[-1], self.head.weight, self.head.bias)

    def _advance(self, tokens: Tensor, state: LSTMState) -> tuple[Tensor, Tensor]:
        """i, f, o = sigmoid(.), g = tanh(.), c = f c + i g, h = o tanh(c), each of (W x + U h + b)."""
        x = self.embed(tokens)
        outputs, cells = [], []
        for layer, (h, c) in enumerate(zip(state.h, state.c, strict=True)):
            w, u, b_w, b_u = (getattr(self.lstm, f"{name}_l{layer}") for name in WEIGHTS)
            z = rowwise_linear(x, w, b_w) + rowwise_linear(h, u, b_u)
            i, f, g, o = (torch.tanh(z * self.gate_scale) * self.gate_scale + (1 - self.gate_scale)).chunk(
                4, dim=-1
            )
            c = f * c + i * g
            x = o * torch.tanh(c)
            outputs.append(x)
            cells.append(c)
        return torch.stack(outputs), torch.stack(cells)


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
