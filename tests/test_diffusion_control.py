"""`sample` while it runs: progress, preview, cancelling, and what ends a run."""

from __future__ import annotations

import _thread
import threading

import pytest
import torch

from aigc_engine import use_backend
from aigc_engine.diffusion import Cancelled, sample
from tests.diffusion_toys import mlp

SHAPE = (2, 3, 4)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_progress_and_preview(solver):
    told, states = [], []

    def denoiser(x, t, cond):
        states.append((x.clone(), t.clone()))
        return torch.full_like(x, 0.25)

    def callback(progress):
        told.append((progress.step, progress.total, progress.preview()))

    options = {"solver": solver, "steps": 5, "prediction": "x0"}
    result = sample(denoiser, (2, *SHAPE), callback=callback, **options)
    total = 9 if solver == "heun" else 5
    assert [(step, of) for step, of, _ in told] == [(i + 1, total) for i in range(total)]
    assert all(torch.allclose(x0, torch.full_like(x0, 0.25)) for *_, x0 in told)

    told.clear()
    options["prediction"] = "eps"
    result = sample(lambda x, t, cond: mlp(x, t), (2, *SHAPE), callback=callback, **options)
    assert torch.allclose(told[-1][2], result, atol=1e-5)  # the last step goes to its own estimate


def test_preview_is_in_the_callers_order():
    told = []
    options = {
        "solver": "ddim",
        "steps": [2, 5, 3],
        "prediction": "x0",
        "cond": torch.tensor([1.0, 2.0, 3.0]),
    }

    def denoiser(x, t, cond):
        return cond.reshape(-1, 1).expand_as(x).contiguous()

    sample(denoiser, (3, 4), callback=lambda progress: told.append(progress.preview()), **options)
    for x0 in told:
        assert torch.allclose(x0, options["cond"][:, None].expand(3, 4))


def test_progress_bar(capsys):
    sample(mlp, (1, 4), steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    sample(mlp, (1, 4), steps=3)
    assert capsys.readouterr().err == ""


def test_cancel():
    with pytest.raises(Cancelled, match="cancelled after evaluation 2 of 6") as error:
        sample(mlp, (2, 4), steps=6, callback=lambda progress: progress.step < 2)
    assert (error.value.step, error.value.total) == (2, 6)

    event, calls = threading.Event(), []

    def denoiser(x, t, cond):
        calls.append(1)
        if len(calls) == 3:
            event.set()
        return mlp(x, t)

    with pytest.raises(Cancelled, match="after evaluation 3 of 10"):
        sample(denoiser, (2, 4), steps=10, cancel=event)
    with pytest.raises(Cancelled, match="after evaluation 0 of 10"):
        sample(denoiser, (2, 4), steps=10, cancel=event)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, LookupError])
def test_what_a_callback_raises_ends_the_run(kind):
    def callback(progress):
        if progress.step == 2:
            raise kind("stop here")

    with pytest.raises(kind, match="stop here"):
        sample(mlp, (2, 4), steps=10, callback=callback)
    assert sample(mlp, (2, 4), steps=2).isfinite().all()  # and leaves nothing behind


def test_interrupts_end_the_run():
    def denoiser(x, t, cond):
        if t[0] < 500:
            _thread.interrupt_main()
        return mlp(x, t)

    with pytest.raises(KeyboardInterrupt):
        sample(denoiser, (2, 4), steps=900, solver="ddim")
    assert sample(mlp, (2, 4), steps=2).isfinite().all()


def test_a_denoiser_that_raises_keeps_its_exception():
    calls = []

    def denoiser(x, t, cond):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("inside the model")
        return mlp(x, t)

    with pytest.raises(ZeroDivisionError, match="inside the model") as error:
        sample(denoiser, (2, 4), steps=5)
    assert error.value.__notes__ == ["sample: raised by the denoiser at evaluation 3 of 5"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nan_names_evaluation_and_row(backend, value):
    def denoiser(x, t, cond):
        out = mlp(x, t)
        if t[0] < 600:
            out[(cond == 1).nonzero().flatten(), 2] = value
        return out

    options = {"solver": "ddim", "steps": [2, 10, 5], "cond": torch.tensor([0, 1, 2])}
    with (
        use_backend(backend),
        pytest.raises(RuntimeError, match="row 1 became NaN or Inf at evaluation 5 of 10"),
    ):
        sample(denoiser, (3, 4), **options)


@pytest.mark.parametrize(
    ("denoiser", "kind", "message"),
    [
        (lambda x, t, cond: x.tolist(), TypeError, "output list at evaluation 1 of 3, expected a tensor"),
        (lambda x, t, cond: x[:, :1], ValueError, r"output \(2, 1\) at evaluation 1 of 3, expected \(2, 4\)"),
        (lambda x, t, cond: x.double(), TypeError, "output torch.float64 at evaluation 1 of 3, expected"),
        (lambda x, t, cond: x.to("meta"), ValueError, "output on meta at evaluation 1 of 3, expected cpu"),
        (lambda x, t, cond: x.mul_(0.5), ValueError, "wrote to its input at evaluation 1 of 3"),
    ],
)
def test_wrong_outputs(denoiser, kind, message):
    with pytest.raises(kind, match=message):
        sample(denoiser, (2, 4), steps=3)


def test_a_denoiser_that_reuses_its_memory_is_found_out_where_it_matters():
    static = torch.empty(2, 4)

    def denoiser(x, t, cond):
        return static.copy_(mlp(x, t))

    assert torch.equal(sample(denoiser, (2, 4), solver="ddim"), sample(mlp, (2, 4), solver="ddim"))
    with pytest.raises(
        ValueError, match="evaluation 2 of 20 is the memory of the one before.*return a clone"
    ):
        sample(denoiser, (2, 4), solver="dpmpp_2m")


def test_a_denoiser_may_return_its_input():
    assert sample(lambda x, t, cond: x, (2, 4), steps=6).isfinite().all()
    assert torch.equal(
        sample(lambda x, t, cond: x, (2, 4), steps=6), sample(lambda x, t, cond: x.clone(), (2, 4), steps=6)
    )
