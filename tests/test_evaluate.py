"""The numbers of `evaluate`: exact on cases with known answers, and the split that they stand on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from aigc_engine.evaluate import metrics, run
from aigc_engine.evaluate.held_out import halves, held_out_digits
from aigc_engine.evaluate.run import Row
from aigc_engine.zoo import Checkpoint


def gaussian(mean: torch.Tensor, scales: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n rows with exactly this mean and the covariance diag(scales^2)."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x -= x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x * scales + mean


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    scale_a, scale_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 1.0])
    a, b = gaussian(mean_a, scale_a, 50, 0), gaussian(mean_b, scale_b, 70, 1)
    expected = (mean_a - mean_b).square().sum() + (scale_a - scale_b).square().sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_turns_with_the_axes_and_bears_constant_features() -> None:
    a = gaussian(torch.zeros(3), torch.tensor([1.0, 2.0, 0.0]), 40, 0)
    b = gaussian(torch.ones(3), torch.tensor([2.0, 1.0, 0.0]), 40, 1)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())
    assert metrics.frechet_distance(a, b) == pytest.approx(3.0 + 2.0, rel=1e-6)
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(5.0, rel=1e-6)


def test_frechet_distance_refuses_bad_features() -> None:
    good = torch.zeros(4, 3)
    for bad in (torch.zeros(1, 3), torch.zeros(4, 2), torch.zeros(4)):
        with pytest.raises(ValueError, match="frechet_distance: b"):
            metrics.frechet_distance(good, bad)
    with pytest.raises(ValueError, match="a has NaN"):
        metrics.frechet_distance(torch.full((4, 3), math.nan), good)


def test_shares_accuracy_and_confidence() -> None:
    p = torch.tensor([[0.95, 0.05, 0.0], [0.6, 0.4, 0.0], [0.0, 0.91, 0.09], [0.05, 0.9, 0.05]])
    assert metrics.accuracy(p, torch.tensor([0, 1, 1, 1])) == 0.75
    assert metrics.confident(p) == 0.5
    assert metrics.class_shares(p).tolist() == [0.5, 0.5, 0.0]


def test_held_out_digits_are_balanced_and_the_halves_are_apart() -> None:
    images, labels = held_out_digits()
    assert images.shape == (1000, 1, 28, 28) and images.dtype == torch.float32
    assert images.amin() == -1 and images.amax() == 1
    assert labels.bincount().tolist() == [100] * 10 and labels[500:].bincount().tolist() == [50] * 10
    a, b = halves()
    assert len(a) == len(b) == 500 and torch.equal(torch.cat([a, b]), images)
    assert len({row.numpy().tobytes() for row in images}) == 1000


@pytest.mark.parametrize(
    ("value", "low", "high", "ok"),
    [
        (0.5, None, None, None),
        (0.97, 0.97, None, True),
        (0.96, 0.97, None, False),
        (0.2, None, 0.2, True),
        (0.3, None, 0.2, False),
    ],
)
def test_rows_know_their_target(value: float, low: float | None, high: float | None, ok: bool | None) -> None:
    row = Row("model", "share", value, percent=True, low=low, high=high)
    assert row.ok is ok
    assert row.shown == f"{value:.1%}"
    assert (row.target == "") is (ok is None)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="samples 9"):
        run.evaluate([], samples=9)
    with pytest.raises(ValueError, match="'no-such-model'"):
        run.evaluate(["no-such-model"])
    strange = Checkpoint("x", Path(), {"family": "poetry"}, torch.nn.Identity())
    with pytest.raises(ValueError, match="family 'poetry'"):
        list(run.measure(strange))


def test_a_broken_model_stops_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.ROWS, "broken", lambda *_: iter([Row("x", "metric", math.nan)]))
    with pytest.raises(RuntimeError, match="x, metric, is nan"):
        list(run.measure(Checkpoint("x", Path(), {"family": "broken"}, torch.nn.Identity())))
