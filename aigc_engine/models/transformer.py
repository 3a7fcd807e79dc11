"""Decoder-only transformer language model over characters, with a key/value cache for generation.

Two variants share one class: "gpt2" (learned positions, pre-norm LayerNorm, GELU, biases) and "llama" (rotary
positions, RMSNorm, SwiGLU, no biases).

References:
    Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023, https://arxiv.org/abs/2302.13971
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
    https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import ops
from aigc_engine.ops.rowwise import rowwise_linear, rowwise_silu

VARIANTS = ("gpt2", "llama")
ROPE_BASE = 10_000.0
NORM_EPS = 1e-5


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=NORM_EPS)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=NORM_EPS)


def rotary_table(length: int, head_dim: int) -> Tensor:
    """e^(i t w_j), w_j = base^(-2 j / D), for positions t < `length`: complex64 (length, D / 2)."""
    rates = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Multiply the pairs (x_2j, x_2j+1) of x (..., D), read as complex numbers, by `phases` (..., D / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phases).flatten(-2).to(x.dtype)


@dataclass
class KVCache:
    """Keys and values of what each row has read, (depth, B, N, S, D), S = context; `blocks` are the weights.

    `lengths` (B,) says how many positions of each row are filled. Shapes don't depend on how far the rows
    are, so that a row's bits don't depend on its neighbours.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    blocks: Sequence[tuple[Tensor | None, ...]]

    def select(self, rows: Tensor) -> KVCache:
        """The cache of these rows only."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.lengths[rows], self.blocks)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def split(self, qkv: Tensor, phases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (rotated by `phases`) and v of qkv (..., 3 C), each (..., N, D)."""
        width = qkv.shape[-1] // 3
        qk, v = qkv.split([2 * width, width], dim=-1)
        qk = qk.unflatten(-1, (2 * self.heads, -1))
        if phases is not None:
            qk = rotate(qk, phases.unsqueeze(-2))
        q, k = qk.split(self.heads, dim=-2)
        return q, k, v.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, mask: Tensor, phases: Tensor | None) -> Tensor:
        """Causal self-attention over x (B, T, C), `mask` (T, T) being added to the scores."""
        mixed: Tensor = self.out(causal_attention(*self.split(self.qkv(x), phases), mask))
        return mixed


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v of q, k, v (B, T, N, D) and mask (T, T): (B, T, N D).

    Written out: training in bfloat16 on CPU, the fused op makes the whole step 1.15 to 1.3 times longer.
    """
    batch, length, heads, _ = q.shape
    q, k, v = (x.transpose(1, 2).reshape(batch * heads, length, -1) for x in (q, k, v))
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    weights = torch.softmax(scores + mask.to(scores.dtype), dim=-1, dtype=scores.dtype)
    mixed = torch.bmm(weights, v).unflatten(0, (batch, heads))
    return mixed.transpose(1, 2).flatten(2)


def linear(layer: nn.Linear, x: Tensor, block: int) -> Tensor:
    return rowwise_linear(x, layer.weight, layer.bias, block)


def gelu(x: Tensor) -> Tensor:
    """GELU's tanh form; without gradients by torch.tanh, whose bits don't depend on the place in a vector."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: Tensor) -> Tensor:
    return F.silu(x) if torch.is_grad_enabled() else rowwise_silu(x)


class GELUMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(gelu(self.up(x)))
        return out

    def rowwise(self, x: Tensor, block: int) -> Tensor:
        return linear(self.down, gelu(linear(self.up, x, block)), block)


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (8 * width // 3 + 31) // 32 * 32  # the parameters of a GELU MLP, in whole vectors
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(silu(gate) * up)
        return out

    def rowwise(self, x: Tensor, block: int) -> Tensor:
        gate, up = linear(self.gate_up, x, block).chunk(2, dim=-1)
        return linear(self.down, silu(gate) * up, block)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, variant: str) -> None:
        super().__init__()
        gpt2 = variant == "gpt2"
        norm = LayerNorm if gpt2 else RMSNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = Attention(width, heads, bias=gpt2)
        self.mlp = GELUMLP(width) if gpt2 else SwiGLU(width)

    def forward(self, x: Tensor, mask: Tensor, phases: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, phases)
        return x + self.mlp(self.norm2(x))

    def entries(self) -> tuple[Tensor | None, ...]:
        """Weights and biases in the order of `ops.decoder_step`."""
        up = self.mlp.up if isinstance(self.mlp, GELUMLP) else self.mlp.gate_up
        parts = (self.norm1, self.attention.qkv, self.attention.out, self.norm2, up, self.mlp.down)
        return tuple(t for part in parts for t in (part.weight, getattr(part, "bias", None)))

    def rowwise(self, x: Tensor, block: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The block on x (rows, C), with a row's bits the same in every batch; `attend`: qkv to (rows, C)."""
        mixed = attend(linear(self.attention.qkv, self.norm1(x), block))
        x = x + linear(self.attention.out, mixed, block)
        return x + self.mlp.rowwise(self.norm2(x), block)


class Transformer(nn.Module):
    """Logits of the next character at every position: `forward(tokens (B, T)) -> (B, T, V)`, T <= context.

    Args:
        vocabulary: the characters; token v is `vocabulary[v]`.
        context: longest window, in characters.
        width: C; depth: blocks; heads: N, a divisor of C with C / N even.
        variant: "gpt2" or "llama".
    """

    mask: Tensor
    phases: Tensor

    def __init__(
        self,
        vocabulary: str,
        context: int = 256,
        width: int = 192,
        depth: int = 4,
        heads: int = 3,
        variant: str = "llama",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"Transformer: variant {variant!r}, expected one of {VARIANTS}; check the config"
            )
        if width % heads or width // heads % 2:
            raise ValueError(
                f"Transformer: heads {heads}, expected a divisor of width {width} with an even quotient"
            )
        self.vocabulary, self.context, self.heads, self.variant = vocabulary, context, heads, variant
        self.embed = nn.Embedding(len(vocabulary), width)
        self.position = nn.Embedding(context, width) if variant == "gpt2" else None
        self.blocks = nn.ModuleList(Block(width, heads, variant) for _ in range(depth))
        self.norm = LayerNorm(width) if variant == "gpt2" else RMSNorm(width)
        self.head = nn.Linear(width, len(vocabulary), bias=False)
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1), persistent=False)
        self.register_buffer("phases", rotary_table(context, width // heads), persistent=False)
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or ".norm" in name or name.startswith("norm"):
                continue
            residual = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if not 0 < length <= self.context:
            raise ValueError(
                f"Transformer: tokens {tuple(tokens.shape)}, expected (B, T) with 1 <= T <= {self.context}"
            )
        x = self.embed(tokens)
        if self.position is not None:
            x = x + self.position.weight[:length]
        phases = self.phases[:length] if self.variant == "llama" else None
        for block in self.blocks:
            x = block(x, self.mask[:length, :length], phases)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def start(self, rows: int) -> KVCache:
        """An empty cache for `rows` texts."""
        weight = self.head.weight
        shape = (len(self.blocks), rows, self.heads, self.context, weight.shape[1] // self.heads)
        keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        lengths = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        return KVCache(keys, torch.zeros_like(keys), lengths, [block.entries() for block in self.blocks])

    def prefill(self, cache: KVCache, rows: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        """Read texts from their beginning: what `rows` (R,) of the cache held is replaced.

        Args:
            tokens: (R, T), T <= context, padded on the right by any token; lengths: (R,), at most T.
        """
        count, length = tokens.shape
        x = self.embed(tokens)
        if self.position is not None:
            x = x + self.position.weight[:length]
        phases = self.phases[:length] if self.variant == "llama" else None
        x = x.flatten(0, 1)
        for depth, block in enumerate(self.blocks):

            def attend(qkv: Tensor, depth: int = depth, attention: Attention = block.attention) -> Tensor:
                q, k, v = attention.split(qkv.unflatten(0, (count, length)), phases)
                cache.keys[depth, rows, :, :length] = k.transpose(1, 2)
                cache.values[depth, rows, :, :length] = v.transpose(1, 2)
                return causal_attention(q, k, v, self.mask[:length, :length]).flatten(0, 1)

            x = block.rowwise(x, length, attend)
        cache.lengths[rows] = lengths

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Read one more token of each row, tokens (B,), and give the logits (B, V) of the next.

        No row of the cache may be full.
        """
        at = cache.lengths
        x = self.embed(tokens)
        if self.position is not None:
            x = x + self.position.weight[at]
        phases = torch.view_as_real(self.phases)[at] if self.variant == "llama" else None
        x, keys, values = ops.decoder_step(
            x, cache.keys, cache.values, at, cache.blocks, phases=phases, eps=NORM_EPS
        )
        rows = torch.arange(len(tokens), device=tokens.device)
        cache.keys[:, rows, :, at] = keys.transpose(0, 1)
        cache.values[:, rows, :, at] = values.transpose(0, 1)
        cache.lengths = at + 1
        return rowwise_linear(self.norm(x), self.head.weight)
