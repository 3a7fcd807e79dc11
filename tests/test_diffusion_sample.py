"""`sample`: batches equal single runs, guidance, image to image and bad input."""

from __future__ import annotations

import threading

import pytest
import torch

from aigc_engine import use_backend
from aigc_engine.diffusion import EDM, SOLVERS, VP, Flow, Recipe, Spacing, sample
from aigc_engine.diffusion.schedule import schedule_of
from aigc_engine.diffusion.solver import solve
from aigc_engine.ops import philox_normal
from tests.diffusion_toys import mlp

SHAPE = (2, 3, 4)


def options_of(solver):
    return {"solver": solver, "schedule": "flow" if solver == "flow_euler" else "linear"}


def conditioned(x, t, cond):
    """A denoiser that tells its rows' conditions apart."""
    return mlp(x, t) + 0.1 * cond.reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_equal_single_runs(solver):
    options = {**options_of(solver), "steps": 6}
    batch = sample(mlp, (5, *SHAPE), seed=40, **options)
    singles = [sample(mlp, (1, *SHAPE), seed=40 + i, **options) for i in range(5)]
    assert torch.equal(batch, torch.cat(singles))
    assert torch.equal(batch[[3, 1]], sample(mlp, (2, *SHAPE), seed=[43, 41], **options))
    assert batch.dtype == torch.float32 and batch.unique().numel() > 100


def test_mixed_rows_equal_separate_runs():
    solvers = ["heun", "ddim", "dpmpp_2m_sde", "euler", "ddpm", "dpmpp_2m", "euler_ancestral", "ddim"]
    steps = [3, 9, 4, 2, 7, 12, 1, 9]
    guidance = [1.0, 3.0, 0.5, 7.5, 1.0, 2.0, -1.0, 0.0]
    eta = [0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    cond, uncond = torch.arange(8.0), torch.full((8,), -3.0)
    seeds = [5, 3, 3, 9, 100, -7, 2**40, 5]
    batch = sample(
        conditioned,
        (8, *SHAPE),
        solver=solvers,
        steps=steps,
        guidance=guidance,
        eta=eta,
        seed=seeds,
        cond=cond,
        uncond=uncond,
    )
    for i in range(8):
        alone = sample(
            conditioned,
            (1, *SHAPE),
            solver=solvers[i],
            steps=steps[i],
            guidance=guidance[i],
            eta=eta[i],
            seed=seeds[i],
            cond=cond[i : i + 1],
            uncond=uncond[i : i + 1],
        )
        assert torch.equal(batch[i], alone[0]), solvers[i]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_backends_give_the_same_bits(solver, backend):
    auto = sample(mlp, (3, *SHAPE), steps=5, **options_of(solver))
    with use_backend(backend):
        assert torch.equal(sample(mlp, (3, *SHAPE), steps=5, **options_of(solver)), auto)


@pytest.mark.parametrize("shape", [(3, 7), (2, 1, 28, 28), (2, 2, 3, 4, 5)])
def test_any_rank(shape):
    assert sample(mlp, shape, steps=2).shape == shape


def test_guidance_is_one_call_with_conditional_rows_first():
    calls = []

    def denoiser(x, t, cond):
        calls.append((x, t, cond))
        return conditioned(x, t, cond)

    cond, uncond = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -1.0, -1.0])
    got = sample(
        denoiser, (3, *SHAPE), solver="euler", steps=4, guidance=[2.5, 1.0, 0.0], cond=cond, uncond=uncond
    )
    assert len(calls) == 4
    for x, t, both in calls:
        assert x.shape == (6, *SHAPE) and t.shape == (6,) and t.dtype == torch.float32
        assert torch.equal(x[:3], x[3:]) and both.tolist() == [1, 2, 3, -1, -1, -1]

    def mixed(x, t, cond):
        g = torch.tensor([2.5, 1.0, 0.0]).reshape(3, 1, 1, 1)
        out = conditioned(x, t, uncond)
        return out + g * (conditioned(x, t, cond) - out)

    expected = sample(mixed, (3, *SHAPE), solver="euler", steps=4, cond=cond)
    assert torch.allclose(got, expected, atol=1e-5)


def test_conditions_of_any_structure():
    plain = sample(conditioned, (3, *SHAPE), steps=[2, 4, 3], cond=torch.arange(3.0))

    def of_dict(x, t, cond):
        assert cond["name"] == "same" and cond["none"] is None
        return conditioned(x, t, cond["parts"][0])

    nested = {"parts": (torch.arange(3.0), torch.zeros(3, 2)), "name": "same", "none": None}
    empty = {"parts": (torch.zeros(3), torch.zeros(3, 2)), "name": "same", "none": None}
    assert torch.equal(sample(of_dict, (3, *SHAPE), steps=[2, 4, 3], cond=nested), plain)
    same = sample(of_dict, (3, *SHAPE), steps=[2, 4, 3], cond=nested, uncond=empty, guidance=[2.0, 1.0, 1.0])
    assert torch.equal(same[1:], plain[1:])
    assert not torch.equal(same[0], plain[0])

    thing = object()
    seen = []
    sample(lambda x, t, cond: seen.append(cond) or mlp(x, t), (2, 3), steps=2, cond=thing)
    assert seen == [thing, thing]


def test_image_to_image():
    image = torch.linspace(-1, 1, 24).reshape(1, *SHAPE).expand(2, -1, -1, -1)
    for name in ("linear", "flow", "edm"):
        schedule = schedule_of(name)
        grid = schedule.grid(10, Spacing(), "sigma")
        seen = []

        def denoiser(x, t, cond, seen=seen):
            seen.append((x.clone(), t))
            return mlp(x, t)

        noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        options = {"solver": "euler", "steps": 10, "schedule": schedule, "start": image, "strength": 0.3}
        sample(denoiser, (2, *SHAPE), noise=noise, **options)
        assert len(seen) == 3
        assert torch.allclose(seen[0][0], grid.alpha[7] * image + grid.sigma[7] * noise, atol=1e-6)
        assert torch.allclose(seen[0][1], torch.tensor(grid.t[7], dtype=torch.float32))
        batch = sample(mlp, (2, *SHAPE), seed=[4, 9], **options)
        alone = sample(mlp, (1, *SHAPE), seed=9, **{**options, "start": image[:1]})
        assert torch.equal(batch[1], alone[0])


def test_little_strength_stays_near_the_image():
    image = torch.linspace(-1, 1, 24).reshape(1, *SHAPE)
    found = [
        sample(lambda x, t, cond: x * 0, (1, *SHAPE), solver="ddim", steps=50, start=image, strength=s)
        for s in (0.02, 0.5)
    ]
    assert (found[0] - image).abs().max() < 0.05 < (found[1] - image).abs().max()
    assert torch.equal(
        sample(mlp, (1, *SHAPE), steps=10, start=image, strength=[0.8]),
        sample(mlp, (1, *SHAPE), steps=10, start=image),
    )


def test_noise_comes_from_the_seeds_and_the_evaluation():
    seeds, seen = torch.tensor([5, 6]), []
    options = {"solver": "euler_ancestral", "steps": [2, 4], "prediction": "x0", "seed": [5, 6]}
    sample(lambda x, t, cond: seen.append(x.clone()) or x * 0, (2, 3, 4), **options)
    rows = {steps: solve(Recipe("euler_ancestral", steps, VP(), "x0")) for steps in (2, 4)}
    first = philox_normal(seeds.flip(0), (3, 4)) * rows[4].init_scale  # the longer row leads
    assert torch.allclose(seen[0], first, atol=1e-6)
    for k in range(3):
        fresh = philox_normal(seeds[1:], (3, 4), stream=k + 1) * rows[4].noise_scale[k]
        expected = rows[4].coefficients[k, 0] * seen[k][:1] + fresh
        assert torch.allclose(seen[k + 1][:1], expected.float(), atol=1e-5)


def test_generators():
    g = torch.Generator().manual_seed(3)
    by_hand = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    seen = []
    first = sample(lambda x, t, cond: seen.append(x.clone()) or mlp(x, t), (2, *SHAPE), generator=g, steps=3)
    assert torch.equal(seen[0], by_hand)
    assert not torch.equal(sample(mlp, (2, *SHAPE), generator=g, steps=3), first)  # it has moved on

    def three():
        return [torch.Generator().manual_seed(i) for i in (7, 8, 9)]

    options = {"solver": "euler_ancestral", "generator": three()}
    batch = sample(mlp, (3, *SHAPE), steps=[2, 5, 4], **options)
    for i, (steps, generator) in enumerate(zip([2, 5, 4], three(), strict=True)):
        alone = sample(mlp, (1, *SHAPE), solver="euler_ancestral", steps=steps, generator=[generator])
        assert torch.equal(batch[i], alone[0])


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample(mlp, (2, *SHAPE), solver="ddpm", steps=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_left_alone():
    image, noise, cond = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.randn(2)
    copies = [x.clone() for x in (image, noise, cond)]
    sample(conditioned, (2, *SHAPE), steps=3, start=image, noise=noise, cond=cond)
    assert all(torch.equal(a, b) for a, b in zip(copies, (image, noise, cond), strict=True))


def test_the_denoiser_gets_its_dtype_and_the_state_stays_float32():
    seen = []

    def denoiser(x, t, cond):
        seen.append((x.dtype, t.dtype))
        return mlp(x.float(), t).to(x.dtype)

    result = sample(denoiser, (2, *SHAPE), steps=4, dtype=torch.bfloat16)
    assert seen == [(torch.bfloat16, torch.float32)] * 4 and result.dtype == torch.float32
    exact = sample(mlp, (2, *SHAPE), steps=4)
    assert 0 < (result - exact).abs().max() < 0.01 * exact.abs().max()

    class Net(torch.nn.Linear):
        def forward(self, x, t, cond):
            return super().forward(x)

    assert sample(Net(4, 4).bfloat16(), (2, *SHAPE), steps=2).shape == (2, *SHAPE)


def test_gradients_and_inference_mode():
    layer = torch.nn.Linear(4, 4)

    @torch.enable_grad()
    def with_gradients(x, t, cond):
        return layer(x)

    result = sample(with_gradients, (2, *SHAPE), steps=3)
    assert not result.requires_grad
    with torch.inference_mode():
        assert torch.equal(sample(with_gradients, (2, *SHAPE), steps=3), result)


ERRORS = [
    ({"shape": (4,)}, ValueError, r"shape \(4,\), expected \(n, ...\)"),
    ({"shape": (0, 4)}, ValueError, r"shape \(0, 4\)"),
    ({"shape": (2, 4.0)}, TypeError, r"shape\[1\] 4.0, expected an int"),
    ({"shape": 4}, TypeError, "shape int, expected a sequence"),
    ({"solver": "dpm"}, ValueError, "solver 'dpm', expected one of"),
    ({"solver": ["ddim"]}, ValueError, "solver has 1 entries, expected n = 2"),
    ({"steps": 0}, ValueError, "steps 0, expected at least 1"),
    ({"steps": -3}, ValueError, "steps -3, expected at least 1"),
    ({"steps": 2.5}, TypeError, "steps 2.5, expected an int"),
    ({"steps": True}, TypeError, "steps True, expected an int"),
    ({"steps": [1, 2, 3]}, ValueError, "steps has 3 entries, expected n = 2 or a single value"),
    ({"steps": 1001}, ValueError, "steps 1001, expected at most the schedule's T = 1000"),
    ({"seed": 1.5}, TypeError, "seed 1.5, expected an int"),
    ({"seed": [1]}, ValueError, "seed has 1 entries, expected n = 2"),
    ({"seed": 2**63}, ValueError, "seed"),
    ({"schedule": "quadratic"}, ValueError, "schedule 'quadratic', expected one of"),
    ({"schedule": 3}, TypeError, "schedule int, expected a name"),
    ({"prediction": "epsilon"}, ValueError, "prediction 'epsilon', expected one of"),
    ({"spacing": "even"}, ValueError, "spacing 'even', expected one of"),
    ({"spacing": 3}, TypeError, "spacing int, expected a name"),
    ({"eta": 0.5}, ValueError, "eta 0.5 with dpmpp_2m, expected 0; only ddim takes it"),
    ({"eta": "all", "solver": "ddim"}, TypeError, "eta 'all', expected a number"),
    ({"guidance": float("nan")}, ValueError, "guidance nan, expected a finite number"),
    ({"guidance": float("inf")}, ValueError, "guidance inf, expected a finite number"),
    ({"guidance": None}, TypeError, "guidance None, expected a number"),
    ({"guidance": 2.0}, ValueError, "cond None, expected both with guidance other than 1"),
    ({"guidance": 2.0, "cond": torch.zeros(2)}, ValueError, "uncond None, expected both with guidance"),
    ({"cond": torch.zeros(3)}, ValueError, r"cond \(3,\), expected leading dimension n = 2"),
    ({"cond": (torch.zeros(2), torch.zeros(1, 4))}, ValueError, r"cond\[1\] \(1, 4\), expected leading"),
    ({"cond": {"a": torch.zeros(3)}}, ValueError, r"cond\['a'\] \(3,\), expected leading"),
    ({"cond": torch.zeros(2, device="meta")}, ValueError, "cond on meta, expected cpu; move it"),
    (
        {"guidance": 2.0, "cond": torch.zeros(2, 3), "uncond": torch.zeros(2)},
        ValueError,
        r"uncond torch.float32 \(2,\), expected torch.float32 \(2, 3\) as cond",
    ),
    (
        {"guidance": 2.0, "cond": [torch.zeros(2)], "uncond": ()},
        TypeError,
        "cond list and uncond tuple can't",
    ),
    (
        {"guidance": 2.0, "cond": object(), "uncond": object()},
        TypeError,
        "cond object and uncond object can't",
    ),
    (
        {"steps": [1, 2], "cond": object()},
        TypeError,
        "cond object, expected tensors where rows take different",
    ),
    ({"start": torch.zeros(2, 5)}, ValueError, r"start \(2, 5\), expected \(2, 4\) as shape"),
    ({"start": torch.zeros(2, 4).long()}, TypeError, "start torch.int64, expected a floating tensor"),
    ({"start": [1]}, TypeError, "start list, expected a floating tensor"),
    (
        {"start": torch.zeros(2, 4), "strength": 0.0},
        ValueError,
        "strength 0.0, expected above 0 and at most 1",
    ),
    (
        {"start": torch.zeros(2, 4), "strength": 1.5},
        ValueError,
        "strength 1.5, expected above 0 and at most 1",
    ),
    ({"start": torch.zeros(2, 4), "strength": 0.01}, ValueError, "strength 0.01 of steps 20 leaves none"),
    ({"strength": 0.5}, ValueError, "strength 0.5 without start, expected None"),
    ({"noise": torch.zeros(1, 4)}, ValueError, r"noise \(1, 4\), expected \(2, 4\) as shape"),
    ({"generator": 3}, TypeError, "generator int, expected a torch.Generator"),
    ({"generator": [torch.Generator()]}, ValueError, "generator has 1 entries, expected n = 2"),
    ({"callback": 3}, TypeError, "callback int, expected a callable or None"),
    ({"cancel": True}, TypeError, r"cancel bool, expected an event with is_set\(\) or None"),
    ({"dtype": torch.float64}, TypeError, "dtype torch.float64, expected torch.float32"),
    ({"denoiser": 3}, TypeError, "denoiser int, expected a callable"),
]


@pytest.mark.parametrize(("given", "kind", "message"), ERRORS, ids=lambda value: None)
def test_bad_input(given, kind, message):
    arguments = {"denoiser": mlp, "shape": (2, 4), **given}
    denoiser, shape = arguments.pop("denoiser"), arguments.pop("shape")
    with pytest.raises(kind, match=f"^sample: .*{message}"):
        sample(denoiser, shape, **arguments)


def test_threads_equal_serial_runs():
    runs = [
        {"solver": s, "steps": n, "seed": i}
        for i, (s, n) in enumerate(zip(SOLVERS, range(4, 12), strict=True))
    ]
    runs = [{**run, **options_of(run["solver"])} for run in runs]
    serial = [sample(mlp, (3, *SHAPE), **run) for run in runs]
    found: dict[int, torch.Tensor] = {}

    def work(mine):
        for i in mine:
            found[i] = sample(mlp, (3, *SHAPE), **runs[i])

    threads = [threading.Thread(target=work, args=(range(start, 8, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], serial[i]) for i in range(8))


def test_schedules_have_their_usual_prediction():
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for schedule, prediction in (
        (VP(), "eps"),
        (Flow(), "flow"),
        (EDM(), "edm"),
        (EDM(preconditioned=False), "x0"),
    ):
        named = sample(mlp, (2, 4), solver="euler", schedule=schedule, prediction=prediction, noise=noise)
        assert torch.equal(sample(mlp, (2, 4), solver="euler", schedule=schedule, noise=noise), named)
