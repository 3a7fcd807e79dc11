"""The recipes of the GANs: the game, its latents, resumption and what is written."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aigc_engine import zoo
from aigc_engine.evaluate.held_out import held_out_digits
from aigc_engine.gan import GanSampler
from aigc_engine.models.gan import choose
from aigc_engine.train import gan
from aigc_engine.train.gan import DCGANTask, MLPTask, random_shift
from aigc_engine.train.loop import run, step_seed
from aigc_engine.train.recipe import RECIPES

TASKS = (DCGANTask, MLPTask)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of the bundled digits, each three times, so that 200 of a class are left to train on."""
    images, labels = held_out_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    pixels = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    np.savez(path, images=np.tile(pixels, (3, 1, 1)), labels=np.tile(labels.numpy(), 3))
    return path


def steps(task: Any, count: int) -> list[dict[str, float]]:
    for model in task.models.values():
        model.train()
    shown = []
    for step in range(count):
        torch.manual_seed(step_seed(0, step))
        shown.append(task.train_step(step))
    return shown


@pytest.mark.parametrize("cls", TASKS)
def test_both_sides_move_and_the_discriminator_learns_first(npz: Path, cls: Any) -> None:
    task = cls(npz, 0)
    before = {name: [p.clone() for p in model.parameters()] for name, model in task.models.items()}
    shown = steps(task, 6)
    for name, model in task.models.items():
        for old, new in zip(before[name], model.parameters(), strict=True):
            assert torch.isfinite(new).all()
            assert new.requires_grad
            if old.ndim > 1:  # the last bias cancels in the difference of two scores
                assert not torch.equal(old, new), name
    assert all(math.isfinite(value) for step in shown for value in step.values())
    assert shown[0]["d"] == pytest.approx(math.log(2), abs=0.1)  # nothing is known yet
    assert min(step["d"] for step in shown) < 0.9 * shown[0]["d"]


def test_a_generator_step_leaves_the_discriminator_alone_and_raises_its_scores(npz: Path) -> None:
    task = DCGANTask(npz, 0)
    steps(task, 2)
    label = torch.arange(32) % 10
    z = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weights = [p.clone() for p in task.discriminator.parameters()]

    def score() -> torch.Tensor:
        with torch.no_grad():
            return task.discriminator(task.exported(z, label), label).mean()

    first = score()
    for _ in range(5):
        task._generator_step(task.exported(z, label).float(), label, torch.zeros(32))
    assert all(torch.equal(a, b) for a, b in zip(weights, task.discriminator.parameters(), strict=True))
    assert score() > first


def test_penalty_is_half_gamma_times_the_squared_slopes(npz: Path) -> None:
    """A linear score w . x has slope |w| everywhere, on both sides."""
    task = DCGANTask(npz, 0)
    w = torch.randn(784, generator=torch.Generator().manual_seed(0))
    task.discriminator = lambda x, label: x.flatten(1) @ w  # type: ignore[assignment]
    images = torch.randn(32, 1, 28, 28)
    got = task._penalty(images, images, torch.zeros(32, dtype=torch.int64))
    want = task.penalty_every * 0.5 * task.gamma * 2 * w.square().sum()
    torch.testing.assert_close(got, want)


def test_latents_of_the_mixture_have_their_label_as_component_and_stay_normal(npz: Path) -> None:
    torch.manual_seed(0)
    label = torch.arange(20_000) % 10
    z = MLPTask(npz, 0).latents(label)
    assert torch.equal(choose(z, 10), label)
    torch.testing.assert_close(z.mean(0), torch.zeros(64), rtol=0, atol=0.035)
    torch.testing.assert_close(z.T.cov(), torch.eye(64), rtol=0, atol=0.05)


def test_random_shift_moves_whole_pictures_by_at_most_two_pixels() -> None:
    torch.manual_seed(0)
    images = torch.full((64, 1, 28, 28), -1.0)
    images[:, 0, 10, 12] = 1.0
    shifted = random_shift(images)
    assert shifted.shape == images.shape
    place = (shifted == 1.0).nonzero()
    assert len(place) == 64 and (shifted == -1.0).sum() == 64 * 783
    moves = place[:, 2:] - torch.tensor([10, 12])
    assert moves.abs().max() == 2
    assert len(moves.unique(dim=0)) > 12


def test_learning_rate_falls_to_zero_in_the_second_half_and_beta_2_rises_at_first(npz: Path) -> None:
    task = DCGANTask(npz, 0)

    def at(step: int) -> tuple[float, float]:
        task._schedule(step)
        group = task.optimizers["generator"].param_groups[0]
        return group["lr"], group["betas"][1]

    assert at(0) == (task.peak, 0.9)
    assert at(task.ramp)[1] == pytest.approx(0.99)
    assert at(task.total_steps // 2)[0] == task.peak
    assert at(task.total_steps)[0] == 0.0


@pytest.mark.parametrize("cls", TASKS)
def test_a_run_that_is_stopped_and_resumed_writes_what_one_without_a_stop_does(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: Any
) -> None:
    monkeypatch.setattr(cls, "total_steps", 4)
    monkeypatch.setattr(gan, "SAMPLES", 500)
    assert run(cls(npz, 3), tmp_path / "whole", progress=False).finished
    task = cls(npz, 3)
    train_step = task.train_step

    def stopping(step: int) -> dict[str, float]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(step)

    task.train_step = stopping
    assert run(task, tmp_path / "parts", progress=False).step == 2
    assert run(cls(npz, 3), tmp_path / "parts", resume=True, progress=False).finished
    whole, parts = zoo.load(tmp_path / "whole"), zoo.load(tmp_path / "parts")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[key]), key
    assert whole.config == json.loads(json.dumps(cls(npz, 3).config))
    images = GanSampler.from_checkpoint(whole).sample(3, seed=1)
    assert torch.equal(images, GanSampler.from_checkpoint(parts).sample(3, seed=1))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "rarest, commonest class of 500 samples" in card and "Frechet" in card


@pytest.mark.parametrize("cls", TASKS)
def test_recipes_are_found_by_name(cls: Any) -> None:
    assert RECIPES[cls.recipe].make_task is cls
