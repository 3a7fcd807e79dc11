"""The training loop: resumption is exact, interruption is clean, files are whole."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_engine import models, zoo
from aigc_engine.train import data, loop
from aigc_engine.train.loop import STATE_FILE, run


class Tiny(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.outer = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.drop(self.norm(self.inner(x))))


class TinyTask:
    """Fit a plane; `at`, if given, is called with the step at the end of every step."""

    recipe = "tiny"
    ema = 0.9
    storage = torch.float32
    config: dict[str, Any] = {"family": "test", "arch": "Tiny", "config": {"width": 8}}  # noqa: RUF012
    card = {"Data": "noise"}  # noqa: RUF012

    def __init__(self, seed: int = 3, total_steps: int = 12, at: Any = None) -> None:
        self.seed, self.total_steps, self.at = seed, total_steps, at
        torch.manual_seed(seed)
        self.exported = Tiny(8)
        self.models: dict[str, nn.Module] = {"net": self.exported}
        adam = torch.optim.AdamW(self.exported.parameters(), 0.01)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"net": adam}

    def train_step(self, step: int) -> dict[str, float]:
        x = torch.randn(16, 4)
        loss = (self.exported(x)[:, 0] - x.sum(1)).square().mean()
        self.optimizers["net"].zero_grad()
        loss.backward()
        self.optimizers["net"].step()
        if self.at is not None:
            self.at(step)
        return {"loss": loss.item()}

    def measure(self, model: nn.Module) -> dict[str, str]:
        assert not model.training
        return {"something": "1.0"}


def interrupt_at(stop: int) -> Any:
    return lambda step: os.kill(os.getpid(), signal.SIGINT) if step == stop else None


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.ARCHITECTURES, "Tiny", __name__)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    run(TinyTask(), tmp_path / "whole", progress=False)
    first = run(TinyTask(at=interrupt_at(4)), tmp_path / "cut", progress=False)
    assert (first.finished, first.step) == (False, 5)
    assert "resume" in first.message
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert run(TinyTask(), tmp_path / "cut", resume=True, progress=False).finished
    whole, cut = (zoo.load(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not (tmp_path / "cut" / STATE_FILE).exists()


def test_average_is_saved_not_the_last_weights(tmp_path: Path) -> None:
    task = TinyTask()
    run(task, tmp_path, progress=False)
    kept = zoo.load(tmp_path).model.state_dict()
    last = task.exported.state_dict()
    assert not torch.equal(kept["inner.weight"], last["inner.weight"])
    assert torch.equal(kept["norm.running_mean"], last["norm.running_mean"])


def test_state_is_written_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    steps: list[int] = []

    def look(step: int) -> None:
        if step > 0:
            steps.append(torch.load(tmp_path / STATE_FILE, weights_only=True)["step"])

    run(TinyTask(total_steps=4, at=look), tmp_path, progress=False)
    assert steps == [1, 2, 3]


def test_refuses_to_overwrite_or_to_resume_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume found no"):
        run(TinyTask(), tmp_path, resume=True, progress=False)
    run(TinyTask(at=interrupt_at(2)), tmp_path, progress=False)
    with pytest.raises(ValueError, match="unfinished run"):
        run(TinyTask(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="same recipe and seed"):
        run(TinyTask(seed=4), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="threads 0"):
        run(TinyTask(), tmp_path / "other", threads=0, progress=False)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    run(TinyTask(at=interrupt_at(2)), tmp_path, progress=False)
    content = (tmp_path / STATE_FILE).read_bytes()
    bomb = pickle.dumps(Path("x"), protocol=2)
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-30], bomb, b"hello"):
        (tmp_path / STATE_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="resume found a damaged"):
            run(TinyTask(), tmp_path, resume=True, progress=False)
    torch.save({"step": 3}, tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match="resume found a damaged"):
        run(TinyTask(), tmp_path, resume=True, progress=False)


def test_random_state_and_threads_are_left_alone(tmp_path: Path) -> None:
    task = TinyTask()
    torch.manual_seed(11)
    expected = torch.randn(3)
    torch.manual_seed(11)
    before = torch.get_num_threads()
    run(task, tmp_path, progress=False, threads=1)
    assert torch.equal(torch.randn(3), expected)
    assert torch.get_num_threads() == before


def write_digits(path: Path, per_class: int = 120) -> None:
    labels = np.repeat(np.arange(10), per_class)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    np.savez(path, images=images, labels=labels)


def test_digits_are_split_by_class_and_never_by_the_training_seed(tmp_path: Path) -> None:
    write_digits(tmp_path / "d.npz")
    train, held = data.load_digits(tmp_path / "d.npz")
    assert train.images.shape == (200, 1, 28, 28)
    assert torch.equal(held.labels.bincount(), torch.full((10,), 100))
    assert train.images.min() >= -1 and train.images.max() <= 1 and train.images.dtype == torch.float32
    rows = {row.numpy().tobytes() for row in train.images}
    assert not any(row.numpy().tobytes() in rows for row in held.images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 28, 28), np.float32), "labels": np.zeros(3, np.int64)}, "images float32"),
        ({"images": np.zeros((3, 28, 27), np.uint8), "labels": np.zeros(3, np.int64)}, "expected uint8"),
        ({"images": np.zeros((3, 28, 28), np.uint8), "labels": np.zeros(2, np.int64)}, "labels int64"),
        ({"images": np.zeros((3, 28, 28), np.uint8), "labels": np.full(3, 10)}, "0 to 9"),
        ({"images": np.zeros((3, 28, 28), np.uint8), "labels": np.zeros(3, np.int64)}, "class 0"),
        ({"pixels": np.zeros(3)}, "not readable"),
    ],
)
def test_bad_digits_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load_digits(tmp_path / "d.npz")


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        data.load_digits(tmp_path / "none.npz")
    write_digits(tmp_path / "d.npz")
    content = (tmp_path / "d.npz").read_bytes()
    for name, part in (("cut.npz", content[: len(content) // 2]), ("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match="not readable"):
            data.load_digits(tmp_path / name)


def test_batches_visit_everything_once_per_epoch() -> None:
    first = torch.cat([data.batch_indices(10, 5, 7, step) for step in (0, 1)])
    second = torch.cat([data.batch_indices(10, 5, 7, step) for step in (2, 3)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.equal(data.batch_indices(10, 5, 7, 3), data.batch_indices(10, 5, 7, 3))
    with pytest.raises(ValueError, match="batch 11"):
        data.batch_indices(10, 11, 0, 0)
