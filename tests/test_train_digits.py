"""The recipes on digits: each trains, is resumed exactly, and its maths is the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aigc_engine import zoo
from aigc_engine.evaluate.held_out import held_out_digits
from aigc_engine.train import digits
from aigc_engine.train.data import Digits
from aigc_engine.train.digits import ClassifierTask, DiffusionTask, VAETask
from aigc_engine.train.loop import run
from aigc_engine.train.recipe import RECIPES

TASKS = (ClassifierTask, DiffusionTask, VAETask)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of the bundled digits, each three times, so that 200 of a class are left to train on."""
    images, labels = held_out_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    pixels = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    np.savez(path, images=np.tile(pixels, (3, 1, 1)), labels=np.tile(labels.numpy(), 3))
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_lowers_the_loss_of_its_batch(npz: Path, task: Any) -> None:
    trained = task(npz, 0)
    trained.batch_of = lambda step: Digits(trained.digits.images[:16], trained.digits.labels[:16])
    losses = []
    for step in range(8):
        torch.manual_seed(0)
        losses.append(trained.train_step(step)["loss"])
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.99 * losses[0]


def test_the_same_seed_gives_the_same_model_and_the_run_writes_a_checkpoint(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassifierTask, "total_steps", 3)
    for name in ("a", "b"):
        torch.manual_seed(99 if name == "a" else 100)
        run(ClassifierTask(npz, 7), tmp_path / name, progress=False)
    a, b = (zoo.load(tmp_path / name) for name in ("a", "b"))
    for key, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[key])
    assert "held-out" in (tmp_path / "a" / "README.md").read_text()
    assert a.family == "classifier"


@pytest.mark.parametrize("task", TASKS)
def test_config_builds_the_model(npz: Path, task: Any) -> None:
    made = task(npz, 0)
    assert RECIPES[made.recipe].make_task is task
    cls = type(made.exported)
    assert made.config["arch"] == cls.__name__
    rebuilt = cls(**made.config["config"])
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in made.exported.state_dict().items()
    }


def test_measures_are_sentences_about_numbers(npz: Path) -> None:
    for task in TASKS:
        made = task(npz, 0)
        for name, value in made.measure(made.exported.eval()).items():
            assert "held-out" in name and math.isfinite(float(value.rstrip("%")))


def test_cosine_schedule_follows_its_formula_until_the_last_step() -> None:
    alpha_bar = digits.cosine_alpha_bar(1000)
    assert alpha_bar[499].item() == pytest.approx(
        (math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2, rel=1e-9
    )
    assert (alpha_bar.diff() < 0).all() and 0 < alpha_bar[-1] < 1e-5
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001, rel=1e-6)


def test_velocity_error_is_zero_for_the_true_velocity_and_sees_every_part_of_time(npz: Path) -> None:
    task = DiffusionTask(npz, 0)
    batch = Digits(task.digits.images[:40], task.digits.labels[:40])
    seen = []

    def oracle(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        alpha, sigma = (s[t.long()].view(-1, 1, 1, 1) for s in (task.alpha, task.sigma))
        noise = (x - alpha * batch.images) / sigma
        return alpha * noise - sigma * batch.images

    assert task.velocity_error(oracle, batch, batch.labels) < 1e-6  # type: ignore[arg-type]
    assert torch.equal((seen[0] / 25).long(), torch.arange(40))


def test_labels_are_dropped_for_guidance(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = DiffusionTask(npz, 0)
    seen = []
    monkeypatch.setattr(task, "velocity_error", lambda model, batch, labels: seen.append(labels))
    torch.manual_seed(0)
    for _ in range(100):
        task.loss(Digits(task.digits.images[:64], task.digits.labels[:64]))
    labels = torch.stack(seen)
    share = (labels == 10).float().mean().item()
    assert 0.08 < share < 0.12
    kept = labels != 10
    assert torch.equal(labels[kept], task.digits.labels[:64].expand(100, -1)[kept])


def test_bound_of_the_vae_against_its_definition() -> None:
    torch.manual_seed(0)
    model = digits.VAE().eval()
    images, noise = torch.rand(3, 1, 28, 28) * 2 - 1, torch.randn(3, 16)
    with torch.no_grad():
        entropy, divergence = VAETask.bound(model, images, noise)
        mean, logvar = model.encode(images)
        p = (model.decode(mean + (0.5 * logvar).exp() * noise) + 1) / 2
    x = (images + 1) / 2
    torch.testing.assert_close(entropy, F.binary_cross_entropy(p, x, reduction="sum") / 3)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(divergence, kl.sum() / 3)


def test_random_affine_moves_pixels_and_keeps_black_black() -> None:
    torch.manual_seed(0)
    images, _ = held_out_digits()
    moved = digits.random_affine(images[:20])
    assert moved.shape == (20, 1, 28, 28) and moved.min() >= -1 - 1e-6 and moved.max() <= 1 + 1e-6
    assert not torch.equal(moved, images[:20])
    assert torch.equal(
        digits.random_affine(torch.full((4, 1, 28, 28), -1.0)), torch.full((4, 1, 28, 28), -1.0)
    )
    mass = (moved + 1).sum((1, 2, 3)) / (images[:20] + 1).sum((1, 2, 3))
    assert (mass - 1).abs().max() < 0.3


def test_learning_rate_rises_holds_and_falls_to_nearly_nothing() -> None:
    rates = [digits.warmup_stable_decay(step, 1000, 2.0, 0.25) for step in range(1000)]
    assert rates[0] == 0.02 and rates[99] == rates[500] == rates[749] == 2.0
    assert rates[-1] == pytest.approx(0.008)
    assert all(0 < rate <= 2.0 for rate in rates)
