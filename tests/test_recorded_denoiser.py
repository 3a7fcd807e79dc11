"""Accelerated denoisers in the loop in C++, and what a plan leaves out when only some arguments change."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import Cancelled, accelerate, sample
from aigc_engine.diffusion.control import Progress
from aigc_engine.diffusion.recorded import recorded
from aigc_engine.graph.accelerated import Accelerated

CHANNELS = 16
pytestmark = [
    pytest.mark.filterwarnings("ignore:accelerate. .* run through torch:RuntimeWarning"),
    pytest.mark.usefixtures("seeded"),
]


class Denoiser(nn.Module):
    """A convolutional denoiser with a time, and a prompt that it attends to."""

    def __init__(self, labels: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.SiLU(), nn.Linear(CHANNELS, CHANNELS))
        self.norm = nn.GroupNorm(4, CHANNELS)
        self.query, self.key, self.value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.last = nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.label = nn.Embedding(labels, CHANNELS) if labels else None

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(CHANNELS // 2) * (-math.log(1e4) / CHANNELS))
        phases = t[:, None] * rates
        e = self.time(torch.cat([phases.cos(), phases.sin()], 1).to(x.dtype))
        if self.label is not None:
            e = e + self.label(cond)
        h = self.first(x) + e[:, :, None, None]
        h = F.silu(self.norm(h))
        if self.label is None:
            q = self.query(h.flatten(2).transpose(1, 2))[:, None]
            h = h + F.scaled_dot_product_attention(
                q, self.key(cond)[:, None], self.value(cond)[:, None]
            ).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.last(h)


def prompts(rows: int) -> Tensor:
    return torch.randn(rows, 5, CHANNELS)


def through_python(fast: Accelerated) -> Callable[..., Tensor]:
    """The same denoiser as a function that the loop can't see through."""
    return lambda x, t, cond: fast(x, t, cond)


def options(rows: int, **more: Any) -> dict[str, Any]:
    return {"steps": 4, "seed": 3, "cond": prompts(rows), "uncond": prompts(rows), **more}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bits_of_calls_from_python(solver: str, guidance: float, dtype: torch.dtype) -> None:
    fast = accelerate(Denoiser().eval().to(dtype), strict=True)
    given = options(2, solver=solver, guidance=guidance, dtype=dtype)
    given |= {"cond": given["cond"].to(dtype), "uncond": given["uncond"].to(dtype)}
    wanted = sample(through_python(fast), (2, 3, 8, 8), **given)
    assert torch.equal(sample(fast, (2, 3, 8, 8), **given), wanted)
    assert wanted.isfinite().all() and wanted.std() > 0.1


def test_rows_leave_the_batch() -> None:
    fast = accelerate(Denoiser().eval())
    given = options(4, steps=[2, 5, 3, 5], solver=["ddim", "heun", "dpmpp_2m", "euler"], guidance=2.0)
    wanted = sample(through_python(fast), (4, 3, 8, 8), **given)
    assert torch.equal(sample(fast, (4, 3, 8, 8), **given), wanted)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the network comes from Python."""

    def refuse(self: Accelerated, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("called from Python")

    monkeypatch.setattr(Accelerated, "__call__", refuse)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("labels", [0, 10])
def test_no_call_comes_from_python(labels: int) -> None:
    """Not even where PyTorch looks labels up: that's done before the loop."""
    fast = accelerate(Denoiser(labels).eval())
    cond = {"cond": torch.tensor([1, 2]), "uncond": torch.zeros(2, dtype=torch.long)} if labels else {}
    assert sample(fast, (2, 3, 8, 8), **options(2, guidance=2.0, **cond)).isfinite().all()


def test_what_needs_python_is_called_from_there() -> None:
    class Sorted(Denoiser):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return super().forward(x, t, cond).sort(dim=-1).values

    fast = accelerate(Sorted().eval())
    given = options(1)
    wanted = sample(through_python(fast), (1, 3, 8, 8), **given)
    assert torch.equal(sample(fast, (1, 3, 8, 8), **given), wanted)


@pytest.mark.usefixtures("unseen")
def test_progress_previews_and_cancelling() -> None:
    fast = accelerate(Denoiser().eval())
    seen: list[tuple[int, Tensor]] = []

    def note(progress: Progress) -> bool:
        seen.append((progress.step, progress.preview()))
        return progress.step < 3

    with pytest.raises(Cancelled, match="after evaluation 3 of 4"):
        sample(fast, (2, 3, 8, 8), **options(2, guidance=2.0), callback=note)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert all(preview.isfinite().all() for _, preview in seen)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        sample(fast, (2, 3, 8, 8), **options(2), cancel=stop)


def test_previews_are_those_of_calls_from_python() -> None:
    fast, previews = accelerate(Denoiser().eval()), []
    given = options(2, guidance=2.0)
    for denoiser in (fast, through_python(fast)):
        found: list[Tensor] = []
        sample(denoiser, (2, 3, 8, 8), **given, callback=lambda p, found=found: found.append(p.preview()))
        previews.append(torch.stack(found))
    assert torch.equal(*previews)


@pytest.mark.usefixtures("unseen")
def test_faults_are_found() -> None:
    model = Denoiser().eval()
    model.last.bias.data.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="became NaN or Inf at evaluation 1 of 4"):
        sample(accelerate(model), (2, 3, 8, 8), **options(2))


def test_what_a_denoiser_must_return() -> None:
    class Pair(Denoiser):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Any:
            return (super().forward(x, t, cond),)

    with pytest.raises(TypeError, match="denoiser's output tuple .* expected a tensor"):
        sample(accelerate(Pair().eval()), (1, 3, 8, 8), **options(1))


def test_functions_are_not_looked_through() -> None:
    with recorded(lambda x, t, cond: x, None, None, None, torch.float32) as found:  # type: ignore[arg-type]
        assert found is None


def test_what_has_not_changed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Denoiser().eval()
    fast = accelerate(model, strict=True)
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 4.0]), prompts(2)
    with torch.no_grad():
        first = fast(x, t, cond)
        plan = fast._latest
        assert plan is not None
        enter, steps = type(plan).enter, []

        def noted(self: Any, *args: Any) -> list[Any]:
            steps.append(enter(self, *args))
            return steps[-1]

        monkeypatch.setattr(type(plan), "enter", noted)

        def needs_of_latest() -> list[Any]:
            return [step.needs for step in steps[-1]]

        def check(*args: Tensor) -> None:
            torch.testing.assert_close(fast(*args), model(*args), rtol=1e-4, atol=1e-5)

        check(x, t, cond)
        assert needs_of_latest() == [None]
        check(x + 1, t, cond)
        assert needs_of_latest() == [None]
        check(x, t + 1, cond)
        assert needs_of_latest() == [frozenset([1]), None]
        check(x, t + 1, cond + 1)
        assert needs_of_latest() == [frozenset([2]), None]
        cond += 1
        check(x, t + 1, cond)
        assert needs_of_latest() == [None]  # in place, to what it was last time
        cond.mul_(-1)
        check(x, t + 1, cond)
        assert needs_of_latest() == [frozenset([2]), None]
        model.time[0].weight.mul_(2)
        check(x, t + 1, cond)
        assert len(needs_of_latest()) == 3
        assert not torch.equal(first, fast(x, t, cond))


def test_a_call_that_was_cut_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Denoiser().eval()
    fast = accelerate(model, strict=True)
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 4.0]), prompts(2)
    fast(x, t, cond)
    plan = fast._latest
    assert plan is not None

    def fail() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan.steps[-1], "run", fail)
    with pytest.raises(KeyboardInterrupt):
        fast(x, t + 1, cond)
    monkeypatch.undo()
    with torch.no_grad():
        torch.testing.assert_close(fast(x, t + 1, cond), model(x, t + 1, cond), rtol=1e-4, atol=1e-5)
