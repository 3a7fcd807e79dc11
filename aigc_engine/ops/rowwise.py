"""Linear layers and SiLU in forms whose rows have the same bits in every batch (see `models.layers`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import tracing

ROWS = 16


def rowwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, block: int = ROWS) -> Tensor:
    """`x W^T + b` on x (B, K), with the same bits for a row in every batch: computed in blocks of 16 rows.

    Another `block` does where each holds the rows of one sample.
    """
    rows = x.shape[0]
    if torch.is_grad_enabled() or rows == 0 or rows == block:
        return F.linear(x, weight, bias)
    blocks = F.pad(x, (0, 0, 0, -rows % block)).split(block)
    return torch.cat([F.linear(block, weight, bias) for block in blocks])[:rows]


def rowwise_silu(x: Tensor) -> Tensor:
    """`x sigmoid(x)` by way of tanh, whose CPU kernel treats the tail of a vector like its body."""
    if tracing():
        return F.silu(x)  # for native kernels, whose rows are the same in any case
    return x * (0.5 * torch.tanh(0.5 * x) + 0.5)
