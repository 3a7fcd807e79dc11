"""One token through the blocks of a decoder-only transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.ops.rowwise import rowwise_linear, rowwise_silu
from aigc_engine.testing import Sample

BLOCK = ("norm1", "qkv", "out", "norm2", "up", "down")  # each a weight and a bias
# Copies of the query row: with one, the batched product of a single small matrix rounded differently from
# that of many (PyTorch 2.13, two threads, N = 1, D = 16 and 32).
QUERY_ROWS = 4

Block = Sequence[Tensor | None]


def _check_decoder_step(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    blocks: Sequence[Block],
    *,
    phases: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    name = "decoder_step"
    checks.floating(name, "x", x)
    checks.rank(name, "x", x, 2, 2)
    checks.tensor(name, "keys", keys)
    checks.rank(name, "keys", keys, 5, 5)
    rows, width = x.shape
    _, _, heads, capacity, dim = keys.shape
    for argument, value in (("keys", keys), ("values", values)):
        checks.tensor(name, argument, value)
        checks.same(name, argument, value, "x", x)
        checks.shape(name, argument, value, (len(blocks), rows, heads, capacity, dim))
    if heads * dim != width:
        raise ValueError(f"{name}: keys with {heads} heads of {dim}, expected {width} in all as x is wide")
    checks.tensor(name, "lengths", lengths)
    checks.shape(name, "lengths", lengths, (rows,))
    if lengths.dtype != torch.int64:
        raise TypeError(f"{name}: lengths {lengths.dtype}, expected torch.int64; convert them")
    if rows and not 0 <= min(filled := lengths.tolist()) <= max(filled) <= capacity:
        raise ValueError(f"{name}: lengths {filled}, expected 0 to {capacity} as the cache holds")
    if phases is not None:
        checks.tensor(name, "phases", phases)
        checks.same(name, "phases", phases, "x", x)
        checks.shape(name, "phases", phases, (rows, dim // 2, 2))
        if dim % 2:
            raise ValueError(f"{name}: phases for heads of {dim}, expected an even size; leave them out")
    for index, block in enumerate(blocks):
        _check_block(f"blocks[{index}]", block, x)
    if len({tuple(t.shape) for block in blocks for t in block[8::2] if t is not None}) > 2:
        raise ValueError(f"{name}: blocks with MLPs of several sizes, expected one; call once for each")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{name}: eps {eps}, expected a finite number >= 0")


def _check_block(where: str, block: Block, x: Tensor) -> None:
    if len(block) != 2 * len(BLOCK):
        raise ValueError(
            f"decoder_step: {where} has {len(block)} entries, expected a weight and a bias of {BLOCK}"
        )
    width, down = x.shape[1], block[10]
    inside = down.shape[-1] if isinstance(down, Tensor) else 0
    up = len(block[8]) if isinstance(block[8], Tensor) else 0
    if up not in (inside, 2 * inside):
        raise ValueError(
            f"decoder_step: {where} up of {up} rows for down of {inside} columns, expected as many (GELU) or "
            "twice as many (SwiGLU)"
        )
    shapes = ((width,), (3 * width, width), (width, width), (width,), (up, width), (width, inside))
    for i, (part, shape) in enumerate(zip(BLOCK, shapes, strict=True)):
        weight, bias = block[2 * i], block[2 * i + 1]
        checks.tensor("decoder_step", f"{where} {part}", weight)
        assert isinstance(weight, Tensor)
        checks.same("decoder_step", f"{where} {part}", weight, "x", x)
        checks.shape("decoder_step", f"{where} {part}", weight, shape)
        if bias is not None:
            checks.vector("decoder_step", f"{where} {part} bias", bias, shape[0], "x", x)


def _samples_decoder_step(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=g) * scale).to(device, dtype)

    def block(width: int, inside: int, gpt2: bool) -> tuple[Tensor | None, ...]:
        up = inside if gpt2 else 2 * inside
        entries: list[Tensor | None] = []
        for shape in ((width,), (3 * width, width), (width, width), (width,), (up, width), (width, inside)):
            entries.append(
                1 + randn(*shape, scale=0.1) if len(shape) == 1 else randn(*shape, scale=width**-0.5)
            )
            entries.append(randn(shape[0], scale=0.1) if gpt2 else None)
        return tuple(entries)

    def case(name: str, lengths: list[int], heads: int, dim: int, capacity: int, inside: int, depth: int,
             gpt2: bool, bench: bool = False) -> Sample:  # fmt: skip
        rows, width = len(lengths), heads * dim
        cache = (randn(depth, rows, heads, capacity, dim), randn(depth, rows, heads, capacity, dim))
        angle = torch.rand(rows, dim // 2, generator=g) * 6.28
        phases = None if gpt2 else torch.stack([angle.cos(), angle.sin()], -1).to(device, dtype)
        blocks = tuple(block(width, inside, gpt2) for _ in range(depth))
        args = (randn(rows, width), *cache, torch.tensor(lengths, device=device), blocks)
        return Sample(name, args, {"phases": phases}, bench=bench)

    for gpt2 in (False, True):
        kind = "gpt2" if gpt2 else "llama"
        yield case(f"{kind}_one_row", [5], 2, 16, 8, 64, 2, gpt2)
        yield case(f"{kind}_rows", [0, 1, 17, 40, 33, 39, 2, 16, 3], 3, 32, 40, 128, 2, gpt2)
        yield case(f"{kind}_tails", [3, 0, 7], 3, 10, 7, 37, 1, gpt2)
        yield case(f"{kind}_one_head", [31, 30], 1, 64, 31, 80, 1, gpt2)
    for rows in (1, 8):
        yield case(f"text_transformer_{rows}", [128] * rows, 3, 64, 256, 512, 4, False, bench=True)


def _cost(x: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, blocks: Sequence[Block],
          **settings: object) -> tuple[float, float]:  # fmt: skip
    weights = sum(t.numel() for block in blocks for t in block if t is not None)
    cache = 2.0 * keys[:, 0].numel() / keys.shape[3] * lengths.sum().item()
    return 2.0 * len(x) * weights + 2.0 * cache, 4.0 * (weights + cache)


@op(
    check=_check_decoder_step,
    samples=_samples_decoder_step,
    dtypes=frozenset({torch.float32}),
    facts=lambda *args, **kwargs: {},
    cost=_cost,
)
def decoder_step(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    blocks: Sequence[Block],
    *,
    phases: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One token of each row through all blocks of a pre-norm decoder, attending to a cache and to itself.

    .. math:: q, k, v = W_{qkv}\,\text{norm}_1(x), \quad
        x \leftarrow x + W_o\,\text{softmax}(q [K\,k]^T / \sqrt{D})\,[V\,v], \quad
        x \leftarrow x + W_{down}\,\phi(W_{up}\,\text{norm}_2(x))

    :math:`\phi` is SwiGLU (gate first) where W_up has twice the rows of W_down's columns, else GELU's tanh
    form; a norm with a bias is a layer norm, without one an RMS norm. q and k are turned by `phases`, read as
    complex numbers (rotary positions), pair by neighbouring pair.

    References:
        Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762
        Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023,
        https://arxiv.org/abs/2302.13971

    Args:
        x: (B, C), float32.
        keys, values: the cache (L, B, N, S, D), N D = C, every element finite; it isn't changed.
        lengths: (B,), int64, 0 to S: how many positions of each row's cache count.
        blocks: L of them, each 12 entries: weight and bias (None: none) of norm1, qkv, out, norm2, up, down.
        phases: (B, D / 2, 2), cosine and sine, or None.
        eps: of the norms.
    Returns:
        x (B, C), and what is new in the cache: keys and values (L, B, N, D).
    Precision: a row's bits don't depend on the batch, on every backend; native, not on threads or ISA either.
    Raises:
        ValueError, TypeError: naming the argument.
    """
    barred = torch.arange(keys.shape[3], device=x.device) >= lengths[:, None]
    heads, new = keys.shape[2], []
    for depth, block in enumerate(blocks):
        norm1, norm1_b, qkv, qkv_b, out, out_b, norm2, norm2_b, up, up_b, down, down_b = block
        assert qkv is not None and out is not None and up is not None and down is not None
        inside = rowwise_linear(_norm(x, norm1, norm1_b, eps), qkv, qkv_b)
        q, k, v = inside.unflatten(1, (3, heads, -1)).unbind(1)
        if phases is not None:
            q, k = _rotate(q, phases), _rotate(k, phases)
        x = x + rowwise_linear(_attend(q, k, v, keys[depth], values[depth], barred), out, out_b)
        inside = rowwise_linear(_norm(x, norm2, norm2_b, eps), up, up_b)
        x = x + rowwise_linear(_activate(inside, down.shape[1]), down, down_b)
        new.append((k, v))
    return x, torch.stack([k for k, _ in new]), torch.stack([v for _, v in new])


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    assert weight is not None
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, phases: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(phases)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, barred: Tensor) -> Tensor:
    rows, heads, length, dim = keys.shape
    q = q * dim**-0.5
    queries = q.reshape(rows * heads, 1, dim).expand(-1, QUERY_ROWS, -1)
    cached = torch.bmm(queries, keys.flatten(0, 1).transpose(1, 2))[:, 0].view(rows, heads, length)
    cached = cached.masked_fill(barred[:, None], -math.inf)
    weights = torch.softmax(torch.cat([cached, (q * k).sum(-1, keepdim=True)], dim=-1), dim=-1)
    shares = weights[..., :length].reshape(rows * heads, 1, length).expand(-1, QUERY_ROWS, -1)
    mixed = torch.bmm(shares, values.flatten(0, 1))[:, 0].view(rows, heads, dim)
    return (mixed + weights[..., length:] * v).flatten(1)


def _activate(x: Tensor, width: int) -> Tensor:
    """SwiGLU or GELU by tanh, whose bits don't depend on an element's place in a vector as F.gelu's do."""
    if x.shape[1] == width:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    gate, up = x.chunk(2, dim=1)
    return rowwise_silu(gate) * up
