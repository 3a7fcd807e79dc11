"""Sampling text: a row depends on its own prompt and seed only; stop strings, streaming, errors."""

from __future__ import annotations

import math
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aigc_engine.autoregressive import TextSampler
from aigc_engine.autoregressive.stop import StopFilter
from aigc_engine.dispatch import use_backend
from tests.test_text_models import CONTEXT, VOCABULARY, build

PROMPTS = ["", "HELLO", "A" * 17, "THE KING " * 5, "X" * (CONTEXT - 1), "B" * CONTEXT, "(", "C" * 16]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["gpt2", "llama", "lstm"])
def sampler(request: pytest.FixtureRequest) -> TextSampler:
    return TextSampler(build(request.param))


def test_n_samples_equal_n_single_calls(sampler: TextSampler) -> None:
    alone = [sampler.sample(prompt="IN THE", seed=7 + i, length=20)[0] for i in range(8)]
    assert len(set(alone)) == 8
    for n in (1, 2, 3, 5, 8):
        assert sampler.sample(n, prompt="IN THE", seed=7, length=20) == alone[:n]
    assert sampler.sample(prompt="IN THE", seed=[9, 7, 9], length=20) == [alone[2], alone[0], alone[2]]


def test_prompts_of_all_lengths_share_a_batch(sampler: TextSampler) -> None:
    """Over the edge of the context as well, where each row rolls at a step of its own."""
    length = CONTEXT + 5
    alone = [sampler.sample(prompt=text, seed=3 + i, length=length)[0] for i, text in enumerate(PROMPTS)]
    assert all(len(text) == length for text in alone)
    for n in (2, 3, 5, 8):
        assert sampler.sample(prompt=PROMPTS[:n], seed=3, length=length) == alone[:n]


def test_settings_hold_in_every_batch(sampler: TextSampler) -> None:
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}
    alone = [sampler.sample(prompt=p, seed=i, length=12, **settings)[0] for i, p in enumerate(PROMPTS[:3])]
    assert sampler.sample(prompt=PROMPTS[:3], length=12, **settings) == alone


def test_the_cache_changes_nothing(sampler: TextSampler) -> None:
    """Past the context too: the recomputed prefix sees the same rolling window."""
    length = CONTEXT + 15
    with_cache = sampler.sample(prompt=PROMPTS[:4], length=length)
    assert sampler.sample(prompt=PROMPTS[:4], length=length, use_cache=False) == with_cache


def test_greedy_text_ignores_the_seed_and_follows_the_model(sampler: TextSampler) -> None:
    text = sampler.sample(prompt="HELLO", length=10, temperature=0.0)[0]
    assert sampler.sample(prompt="HELLO", length=10, temperature=0.0, seed=99)[0] == text
    tokens = [VOCABULARY.index(character) for character in "\nHELLO" + text]
    with torch.inference_mode():
        likeliest = sampler.model(torch.tensor([tokens]))[0].argmax(dim=1).tolist()
    assert tokens[6:] == likeliest[5:-1]


def test_the_repetition_penalty_counts_prompt_and_text() -> None:
    """So large a penalty that nothing comes twice until everything has come."""
    sampler = TextSampler(build("lstm"))
    text = sampler.sample(prompt="ABC", length=20, temperature=0.0, repetition_penalty=1e6)[0]
    seen = "\nABC" + text
    with torch.no_grad():
        logits = sampler.model(torch.tensor([[VOCABULARY.index(c) for c in seen]]))[0]
    for place in range(4, len(seen)):
        raw = logits[place - 1]
        known = torch.tensor(sorted({VOCABULARY.index(c) for c in seen[:place]}))
        raw[known] = torch.where(raw[known] < 0, raw[known] * 1e6, raw[known] / 1e6)
        assert VOCABULARY[int(raw.argmax())] == seen[place]


def test_stop_strings_end_a_row_and_are_left_out(sampler: TextSampler) -> None:
    whole = sampler.sample(5, seed=1, length=40)
    stop = [whole[0][10:12], whole[3][5]]
    wanted = [text[: min([text.find(s) for s in stop if s in text], default=40)] for text in whole]
    assert len({len(text) for text in wanted}) > 1
    assert sampler.sample(5, seed=1, length=40, stop=stop) == wanted
    assert sampler.sample(5, seed=1, length=40, stop=stop, use_cache=False) == wanted
    assert [sampler.sample(seed=1 + i, length=40, stop=stop)[0] for i in range(5)] == wanted


def test_a_stream_is_the_sample_in_pieces(sampler: TextSampler) -> None:
    whole = sampler.sample(prompt="HELLO", seed=5, length=30)[0]
    assert list(sampler.stream("HELLO", seed=5, length=30)) == list(whole)
    stop = whole[20:23]
    assert "".join(sampler.stream("HELLO", seed=5, length=30, stop=stop)) == whole[: whole.find(stop)]


def test_pieces_are_told_in_order(sampler: TextSampler) -> None:
    told = [""] * 3
    texts = sampler.sample(
        3, length=15, stop="~?", on_token=lambda row, piece: told.__setitem__(row, told[row] + piece)
    )
    assert told == texts


def test_stop_filter_holds_back_only_what_may_stop() -> None:
    held = StopFilter(["</s>", "<|"])
    assert [held.push(c) for c in "a<b</s"] == ["a", "", "<b", "", "", ""]
    assert held.push("x") == "</sx"
    assert [held.push(c) for c in "y<|"] == ["y", "", ""]
    assert held.ended
    open_end = StopFilter(["aab"])
    assert "".join(open_end.push(c) for c in "aaab") == "a"
    rest = StopFilter(["stop"])
    assert rest.push("go sto") == "go "
    assert rest.flush() == "sto"


def test_threads_share_a_sampler(sampler: TextSampler) -> None:
    serial = [sampler.sample(3, seed=10 * i, length=15) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: sampler.sample(3, seed=10 * i, length=15), range(4))) == serial


def test_backends_draw_the_same_text(sampler: TextSampler) -> None:
    texts = sampler.sample(2, length=10, top_p=0.9)
    with use_backend("reference"):
        assert sampler.sample(2, length=10, top_p=0.9) == texts


def test_interrupting_ends_at_once_and_leaves_the_sampler_usable() -> None:
    sampler = TextSampler(build("llama"))
    before = sampler.sample(length=5)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(length=10**7)
    timer.join()
    assert sampler.sample(length=5) == before


def test_an_exception_from_the_callback_ends_the_run() -> None:
    class Enough(Exception):
        pass

    told: list[str] = []

    def tell(row: int, piece: str) -> None:
        told.append(piece)
        if len(told) == 4:
            raise Enough

    with pytest.raises(Enough):
        TextSampler(build("lstm")).sample(length=10**7, on_token=tell)
    assert len(told) == 4


def test_a_model_that_gives_nan_is_named() -> None:
    model = build("llama")
    with torch.no_grad():
        model.head.weight[5, 5] = math.nan
    with pytest.raises(ValueError, match="sample_token: logits row 0 has NaN"):
        TextSampler(model).sample(2)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n": 0}, ValueError, "n 0"),
        ({"n": 1.5}, TypeError, "n 1.5"),
        ({"prompt": "NAÏVE"}, ValueError, "prompt with 'Ï'"),
        ({"prompt": 7}, TypeError, "prompt int"),
        ({"prompt": []}, ValueError, "prompt has 0 entries"),
        ({"prompt": ["A", 3]}, TypeError, "prompt has a int"),
        ({"prompt": ["A", "B"], "n": 3}, ValueError, "prompt has 2 entries, expected n = 3"),
        ({"prompt": ["A", "B"], "seed": [1]}, ValueError, "seed has 1 entries"),
        ({"seed": "0"}, TypeError, "seed '0'"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"length": 0}, ValueError, "length 0"),
        ({"stop": ""}, ValueError, "stop ''"),
        ({"stop": ["A", ""]}, ValueError, "stop ''"),
        ({"temperature": -1.0}, ValueError, "temperature -1.0"),
        ({"temperature": math.nan}, ValueError, "temperature nan"),
        ({"top_k": -3}, ValueError, "top_k -3"),
        ({"top_p": 0.0}, ValueError, "top_p 0.0"),
        ({"min_p": 2.0}, ValueError, "min_p 2.0"),
        ({"repetition_penalty": -1.0}, ValueError, "repetition_penalty -1.0"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextSampler(build("lstm")).sample(**kwargs)


def test_a_stream_checks_its_arguments_when_called() -> None:
    with pytest.raises(ValueError, match="length 0"):
        TextSampler(build("lstm")).stream(length=0)
    with pytest.raises(TypeError, match="prompt list"):
        TextSampler(build("lstm")).stream(["A"])


def test_defaults_of_a_checkpoint() -> None:
    model = build("lstm")
    greedy = TextSampler(model, temperature=0.0)
    assert greedy.sample(length=9) == TextSampler(model).sample(length=9, temperature=0.0)
    assert greedy.sample(length=9, temperature=1.0) == TextSampler(model).sample(length=9)
    with pytest.raises(ValueError, match="TextSampler: sampling"):
        TextSampler(model, heat=1.0)
