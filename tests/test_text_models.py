"""The language models: causal, cached steps equal the whole forward, rows don't see their neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from aigc_engine import zoo
from aigc_engine.autoregressive.model import bucket, window_start
from aigc_engine.evaluate.text import STATE_WINDOW, bits_per_character, held_out_text
from aigc_engine.models.lstm import LSTM
from aigc_engine.models.transformer import Transformer, rotary_table, rotate

VOCABULARY = "\n" + "".join(map(chr, range(32, 95)))
CONTEXT = 24

pytestmark = pytest.mark.usefixtures("one_thread")


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "lstm":
        model: nn.Module = LSTM(VOCABULARY, embedding_dim=24, hidden=96, depth=2)
    else:
        model = Transformer(VOCABULARY, context=CONTEXT, width=96, depth=2, heads=3, variant=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)  # far from uniform, so that rounding could change a choice
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["gpt2", "llama", "lstm"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(len(VOCABULARY), (rows, length), generator=torch.Generator().manual_seed(seed))


def test_later_tokens_change_nothing_before_them(model: nn.Module) -> None:
    before = tokens(2, 20)
    after = before.clone()
    after[:, 12:] = tokens(2, 8, seed=1)
    assert torch.equal(model(before)[:, :12], model(after)[:, :12])
    assert not torch.allclose(model(before)[:, 12:], model(after)[:, 12:])


@torch.inference_mode()
@pytest.mark.parametrize("read", [0, 1, 15, 16, 17, 20])
def test_steps_after_a_prefill_equal_the_whole_forward(model: nn.Module, read: int) -> None:
    text = tokens(3, CONTEXT)
    state = model.start(3)
    if read:
        padded = torch.zeros(3, bucket(read, CONTEXT), dtype=torch.int64)
        padded[:, :read] = text[:, :read]
        model.prefill(state, torch.arange(3), padded, torch.full((3,), read))
    logits = torch.stack([model.step(text[:, t], state) for t in range(read, CONTEXT)], dim=1)
    torch.testing.assert_close(logits, model(text)[:, read:], rtol=2e-4, atol=2e-4)


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_every_batch(model: nn.Module, threads: int) -> None:
    lengths = torch.tensor([5, 19, 16, 1, 20, 17, 8, 12] * 5)
    text = tokens(len(lengths), CONTEXT)

    def logits(rows: Tensor) -> Tensor:
        state = model.start(len(rows))
        size = CONTEXT
        model.prefill(state, torch.arange(len(rows)), text[rows, :size], lengths[rows])
        for t in range(2):
            out = model.step(text[rows, t], state)
        return out

    torch.set_num_threads(threads)  # one_thread puts it back
    alone = {row: logits(torch.tensor([row]))[0] for row in (range(8) if threads == 1 else (0, 4))}
    for n in (1, 2, 3, 5, 8, 40) if threads == 1 else (40,):
        together = logits(torch.arange(n))
        for row in alone.keys() & set(range(n)):
            assert torch.equal(together[row], alone[row]), f"row {row} of {n}"
    assert torch.equal(logits(torch.tensor([7, 0]))[1], alone[0])


@torch.inference_mode()
def test_selected_rows_go_on_unchanged(model: nn.Module) -> None:
    text = tokens(4, 6)
    state = model.start(4)
    for t in range(5):
        model.step(text[:, t], state)
    kept = state.select(torch.tensor([3, 1]))
    assert torch.equal(model.step(text[[3, 1], 5], kept), model.step(text[:, 5], state)[[3, 1]])


def test_rotation_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    phases = rotary_table(60, 16)
    for near, far in (((5, 3), (55, 53)), ((20, 0), (41, 21))):
        products = [rotate(q, phases[i]) @ rotate(k, phases[j]) for i, j in (near, far)]
        torch.testing.assert_close(*products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_attention_is_the_fused_ops(variant: str) -> None:
    attention = build(variant).blocks[0].attention
    x, mask = torch.randn(2, 20, 96), torch.full((20, 20), -math.inf).triu(1)
    q, k, v = (t.transpose(1, 2) for t in attention.split(attention.qkv(x), None))
    fused = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, mask, None), attention.out(fused))


def test_the_window_rolls_by_half() -> None:
    assert [window_start(n, None) for n in (1, 10**6)] == [0, 0]
    starts = [window_start(n, 8) for n in range(1, 21)]
    assert starts == [0] * 8 + [5] * 5 + [10] * 5 + [15] * 2
    for context in (8, 9, 48, 256):
        seen = [n - window_start(n, context) for n in range(1, 4 * context)]
        assert max(seen) == context
        assert min(seen[context:]) == context // 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": "gpt5"}, "variant 'gpt5'"),
        ({"heads": 5}, "heads 5"),
        ({"width": 9, "heads": 3}, "heads 3"),
    ],
)
def test_bad_configs_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"Transformer: {message}"):
        Transformer(VOCABULARY, **kwargs)


@pytest.mark.parametrize("length", [0, CONTEXT + 1])
def test_too_long_or_empty_input_is_named(length: int) -> None:
    with pytest.raises(ValueError, match="Transformer: tokens"):
        build("llama")(torch.zeros(1, length, dtype=torch.int64))


class Copycat(nn.Module):
    """p(same character again) = 1/2 when it has seen one, the rest even: its bits are known by counting."""

    vocabulary = "\nabc"

    def __init__(self, context: int | None) -> None:
        super().__init__()
        self.context = context
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.lengths.append(tokens.shape[1])
        probabilities = torch.full((*tokens.shape, 4), 1 / 6)
        return probabilities.scatter(2, tokens[..., None], 0.5).log()


@pytest.mark.parametrize("context", [16, 17, None])
@pytest.mark.parametrize("count", [1, 7, 16, 17, 24, 25, 1000])
def test_bits_count_every_character_once(context: int | None, count: int) -> None:
    text = "".join("aabbbc\n"[i % 7] for i in range(count))
    follows = ["\n", *text]
    wanted = sum(1.0 if a == b else math.log2(6) for a, b in zip(follows, text, strict=False)) / count
    model = Copycat(context)
    assert bits_per_character(model, text) == pytest.approx(wanted, rel=1e-6)
    assert max(model.lengths) <= (context or STATE_WINDOW)


@pytest.mark.parametrize("text", ["", "abd"])
def test_bits_of_foreign_text_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bits_per_character: text"):
        bits_per_character(Copycat(8), text)


def test_the_bundled_transformer_predicts_held_out_text() -> None:
    """On the first 6,000 characters; `evaluate` takes all 105,643 (1.455 and 1.504 bits)."""
    text = held_out_text()[:6000]
    assert bits_per_character(zoo.load_model("text-transformer"), text) < 1.6
    assert bits_per_character(zoo.load_model("text-lstm"), text) < 1.65
