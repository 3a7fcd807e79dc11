"""Recipes on text: the split, the schedule, learning, and bad data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aigc_engine import zoo
from aigc_engine.autoregressive import TextSampler
from aigc_engine.models.lstm import LSTM
from aigc_engine.models.transformer import Transformer
from aigc_engine.train import loop
from aigc_engine.train.recipe import RECIPES
from aigc_engine.train.text import LSTM_SETTINGS, TRANSFORMER, TextTask, load_text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "verses.txt"
    path.write_text("".join(f"And the {i % 7} came unto {i % 11}.\n" for i in range(2100)))
    return path


def small(kind: str, data: Path, steps: int, seed: int = 0) -> TextTask:
    if kind == "transformer":
        config = {"context": 32, "width": 32, "depth": 1, "heads": 2, "variant": "llama"}
        settings = dataclasses.replace(TRANSFORMER, steps=steps, batch=4, length=32, warmup=5, ema=0.5)
        return TextTask("text-transformer", Transformer, config, settings, data, seed)
    config = {"embedding_dim": 16, "hidden": 32, "depth": 1}
    settings = dataclasses.replace(LSTM_SETTINGS, steps=steps, batch=4, length=32, warmup=5, ema=0.5)
    return TextTask("text-lstm", LSTM, config, settings, data, seed)


def test_the_last_25_of_1000_lines_are_held_out(data: Path) -> None:
    lines = data.read_text().splitlines(keepends=True)
    training, held_out = load_text(data)
    assert held_out == "".join(lines[975:1000] + lines[1975:2000])
    assert training == "".join(lines[:975] + lines[1000:1975] + lines[2000:])


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_short_run_learns_and_its_checkpoint_samples(kind: str, data: Path, tmp_path: Path) -> None:
    task = small(kind, data, 60)
    before = float(task.measure(task.exported)["Held-out bits per character"])
    result = loop.run(task, tmp_path, progress=False)
    checkpoint = zoo.load(result.path)
    after = float(task.measure(checkpoint.model)["Held-out bits per character"])
    assert before > 4.0
    assert after < 0.75 * before
    assert len(TextSampler.from_checkpoint(checkpoint).sample(prompt="And", length=9)[0]) == 9


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_run_depends_on_its_seed_only(kind: str, data: Path) -> None:
    def losses(seed: int) -> list[float]:
        task = small(kind, data, 5, seed)
        found = []
        for step in range(3):
            torch.manual_seed(loop.step_seed(seed, step))
            found.append(task.train_step(step)["bits"])
        return found

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_the_rate_warms_up_and_falls(data: Path) -> None:
    task = small("transformer", data, 100)
    rates = []
    for step in (0, 4, 50, 99):
        task.train_step(step)
        rates.append([o.param_groups[0]["lr"] for o in task.optimizers.values()])
    for place, peak in enumerate((TRANSFORMER.rate, TRANSFORMER.matrix_rate)):
        first, warm, middle, last = (rate[place] for rate in rates)
        assert first < warm > middle > last
        assert warm == pytest.approx(peak, rel=0.01)
        assert last == pytest.approx(0.02 * peak, rel=0.05)


def test_recipes_are_listed() -> None:
    assert {"text-transformer", "text-lstm"} <= RECIPES.keys()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"short\n" * 999])
def test_bad_data_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="train: data .*data.txt"):
        RECIPES["text-lstm"].make_task(path, 0)
