"""Every solver against diffusers' scheduler: state by state, and the sums of its own test-suite."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch

from aigc_engine.diffusion import EDM, VP, Flow, Recipe, Spacing, sample
from aigc_engine.diffusion.schedule import schedule_of
from aigc_engine.diffusion.solver import solve
from aigc_engine.diffusion.spacing import TIMESTEPS
from tests.diffusion_toys import march, mlp, upstream_toy

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
}
RESPACED = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde")
SIGMA_SPACE = ("euler", "euler_ancestral", "heun")


def scheduler_of(solver, vp, prediction, spacing, lower_order_final=True):
    """diffusers' scheduler with the same settings."""
    settings = {
        "num_train_timesteps": vp.T,
        "beta_start": vp.beta_start,
        "beta_end": vp.beta_end,
        "beta_schedule": BETAS[vp.betas],
        "prediction_type": PREDICTIONS[prediction],
        "timestep_spacing": spacing.timesteps,
        "steps_offset": spacing.steps_offset,
    }
    if solver in ("ddpm", "ddim"):
        settings["clip_sample"] = False
    if solver == "ddim":
        settings["set_alpha_to_one"] = spacing.final == "zero"
    if solver in RESPACED:
        settings["use_karras_sigmas"] = spacing.sigmas == "karras"
        settings["use_exponential_sigmas"] = spacing.sigmas == "exponential"
    if solver in ("euler", "dpmpp_2m", "dpmpp_2m_sde"):
        settings["final_sigmas_type"] = spacing.final
    if solver.startswith("dpmpp"):
        settings["lower_order_final"] = lower_order_final
        settings["algorithm_type"] = "sde-dpmsolver++" if solver == "dpmpp_2m_sde" else "dpmsolver++"
    return getattr(diffusers, CLASSES[solver])(**settings)


def run_scheduler(scheduler, steps, x, model, *, generator=None, eta=None, **given):
    """Their loop: the model's inputs and the last state, the raw states, and the timesteps."""
    scheduler.set_timesteps(steps, **given)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as pipelines do: some spacings repeat timesteps
    x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
    extra = {} if "Heun" in type(scheduler).__name__ else {"generator": generator}
    if eta is not None:
        extra["eta"] = eta
    seen, states = [], [x]
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", None)
        model_input = x if scale is None else scale(x, t)
        seen.append(model_input)
        x = scheduler.step(model(model_input, t), t, x, **extra).prev_sample
        states.append(x)
    return [*seen, x], states, scheduler.timesteps.double()


def run_ours(shape, model, **options):
    """Our loop: the model's inputs and the result."""
    seen = []

    def denoiser(x, t, cond):
        seen.append(x.clone())
        return model(x, t)

    result = sample(denoiser, shape, **options)
    return [*seen, result]


def worst_difference(ours, theirs):
    """Largest difference of any state, relative to that state's largest element."""
    assert len(ours) == len(theirs)
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(ours, theirs, strict=True)
    )


class _TorchDouble:
    """torch, but float32 is float64: diffusers' schedulers in double precision."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


class _NumpyDouble:
    float32 = np.float64

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def linspace(*args, dtype=None, **kwargs):
        t = np.linspace(
            *args, **kwargs
        )  # with a dtype these are the timesteps, float32 as their models get them
        return t if dtype is None else t.astype(np.float32).astype(np.float64)


def in_double(monkeypatch, scheduler, vp, spacing):
    """The scheduler computing in float64 on our table (theirs is its float32 rounding)."""
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "torch", _TorchDouble())
    monkeypatch.setattr(module, "np", _NumpyDouble())
    scheduler.alphas_cumprod = torch.from_numpy(1 / (1 + vp.sigmas**2))
    scheduler.final_alpha_cumprod = (
        scheduler.alphas_cumprod[0]
        if spacing.final == "sigma_min"
        else torch.tensor(1.0, dtype=torch.float64)
    )
    scheduler.lambda_t = -torch.log(torch.from_numpy(vp.sigmas))
    return scheduler


def cases(solver, betas):
    """Every spacing and prediction, with steps, ends and eta taken in turn."""
    predictions = [
        p for p in PREDICTIONS if not (solver == "euler_ancestral" and p == "x0")
    ]  # diffusers lacks it
    sigmas = (None, "karras", "exponential") if solver in RESPACED else (None,)
    finals = ("zero", "sigma_min") if solver in ("ddim", "euler", "dpmpp_2m", "dpmpp_2m_sde") else ("zero",)
    etas = (0.0, 0.3, 1.0) if solver == "ddim" else (0.0,)
    turns = itertools.cycle(((7, True), (16, True), (2, True), (7, False), (1, True)))
    for prediction, timesteps, spread, final, eta in itertools.product(
        predictions, TIMESTEPS, sigmas, finals, etas
    ):
        if solver.startswith("dpmpp") and spread == "exponential" and betas != "linear":
            continue  # diffusers truncates 998.9999 to 998 there; test_diffusion_solver pins ours
        if solver.startswith("dpmpp") and spread == "karras" and betas == "cosine":
            continue  # likewise
        if solver == "heun" and spread and prediction != "v":
            continue  # their constructor takes 0.1 s with these
        steps, lower_order_final = next(turns)
        spacing = Spacing(timesteps, spread, final=final, steps_offset=int(timesteps == "leading"))
        yield prediction, spacing, steps, lower_order_final, eta


@pytest.mark.parametrize("name", BETAS)
def test_schedule_is_the_float32_table_of_diffusers(name):
    vp = schedule_of(name)
    theirs = diffusers.DDPMScheduler(
        beta_start=vp.beta_start, beta_end=vp.beta_end, beta_schedule=BETAS[name]
    )
    assert torch.equal(torch.from_numpy(vp.beta), theirs.betas.double())
    alpha_bar = torch.from_numpy(1 / (1 + vp.sigmas**2))
    assert torch.allclose(alpha_bar, theirs.alphas_cumprod.double(), rtol=1e-12)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("solver", CLASSES)
def test_equals_diffusers_in_float64(monkeypatch, solver, betas):
    vp = schedule_of(betas)
    noise = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    checked = 0
    for prediction, spacing, steps, lower_order_final, eta in cases(solver, betas):
        scheduler = scheduler_of(solver, vp, prediction, spacing, lower_order_final)
        scheduler = in_double(monkeypatch, scheduler, vp, spacing)
        g, h = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        given_eta = eta if solver == "ddim" else None
        _, theirs, t = run_scheduler(scheduler, steps, noise, mlp, generator=g, eta=given_eta)
        recipe = Recipe(solver, steps, vp, prediction, spacing, eta=eta, lower_order_final=lower_order_final)
        ours = march(
            recipe, noise, mlp, lambda h=h: torch.randn(noise.shape, generator=h, dtype=torch.float64)
        )
        assert np.allclose(solve(recipe).t, t, atol=1e-6), (prediction, spacing, steps)
        if solver in SIGMA_SPACE:  # their state is x / alpha
            scale = (1 + scheduler.sigmas[:-1].double() ** 2).sqrt().tolist() + [1.0]
            ours = [x * s for x, s in zip(ours, scale, strict=True)]
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            size = max(float(b.abs().max()), float(theirs[max(k - 1, 0)].abs().max()))
            assert float((a - b).abs().max()) <= 1e-7 * size, (prediction, spacing, steps, eta, k)
        checked += 1
    assert checked >= 6


@pytest.mark.parametrize("solver", CLASSES)
def test_equals_stock_diffusers(solver):
    shape = (3, 2, 4, 4)
    chosen = [(betas, case) for betas in ("linear", "scaled_linear") for case in cases(solver, betas)]
    for betas, (prediction, spacing, steps, lower_order_final, eta) in chosen:
        if spacing.final != "zero" or not lower_order_final or steps < 7:
            continue  # in one or two steps their float32 cancels numbers of the size of sigma_max
        scheduler = scheduler_of(solver, schedule_of(betas), prediction, spacing)
        g = torch.Generator().manual_seed(2)
        noise = torch.randn(shape, generator=g)
        given_eta = eta if solver == "ddim" else None
        theirs, _, _ = run_scheduler(scheduler, steps, noise, mlp, generator=g, eta=given_eta)
        h = torch.Generator().manual_seed(2)
        ours = run_ours(
            shape,
            mlp,
            solver=solver,
            steps=steps,
            schedule=betas,
            prediction=prediction,
            spacing=spacing,
            eta=eta,
            generator=h,
        )
        assert torch.equal(g.get_state(), h.get_state())  # as many draws, needed or not
        assert worst_difference(ours, theirs) <= 1e-5, (betas, prediction, spacing, steps, eta)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
def test_dpm_solver_timesteps_of_spread_sigmas(betas, sigmas):
    for steps in (5, 12, 25):
        spacing = Spacing("linspace", sigmas)
        scheduler = scheduler_of("dpmpp_2m", schedule_of(betas), "eps", spacing)
        scheduler.set_timesteps(steps)
        ours = solve(Recipe("dpmpp_2m", steps, schedule_of(betas), "eps", spacing)).t
        assert ours[1:].tolist() == scheduler.timesteps[1:].tolist()
        assert 0 <= ours[0] - scheduler.timesteps[0] <= 1  # theirs truncates 998.9999 where float32 rounds so


@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize("sigmas", [None, "karras", "exponential"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_stock_diffusers(shift, sigmas, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=shift, use_karras_sigmas=sigmas == "karras", use_exponential_sigmas=sigmas == "exponential"
    )
    noise = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    theirs, _, t = run_scheduler(scheduler, steps, noise, mlp)
    options = {"schedule": Flow(shift, time_scale=1000.0), "steps": steps, "noise": noise}
    spacing = Spacing(sigmas=sigmas)
    for solver in ("flow_euler", "euler"):
        ours = run_ours(noise.shape, mlp, solver=solver, spacing=spacing, **options)
        assert worst_difference(ours, theirs) <= 1e-5
    recipe = Recipe("flow_euler", steps, options["schedule"], "flow", spacing)
    assert np.allclose(solve(recipe).t, t, rtol=1e-6)


def test_trailing_flow_is_what_flux_pipelines_ask_for():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    theirs, _, _ = run_scheduler(scheduler, 8, noise, mlp, sigmas=np.linspace(1.0, 1 / 8, 8).tolist())
    flow = Flow(3.0, time_scale=1000.0)
    ours = run_ours((2, 8), mlp, solver="flow_euler", steps=8, schedule=flow, spacing="trailing", noise=noise)
    assert worst_difference(ours, theirs) <= 1e-5


def test_heun_on_a_flow_equals_stock_diffusers():
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    theirs, _, t = run_scheduler(scheduler, 10, noise, mlp)
    # Its nodes run to the shifted 1 / T and aren't shifted again.
    ramp = np.linspace(1.0, float(Flow(3.0).shifted(1 / 1000)), 10)
    assert np.allclose(t[::2] / 1000, Flow(3.0).shifted(ramp), rtol=1e-6)
    options = {"schedule": Flow(3.0, time_scale=1000.0), "steps": 10, "noise": noise}
    assert worst_difference(run_ours((2, 8), mlp, solver="heun", **options), theirs) <= 1e-5


@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
def test_edm_equals_stock_diffusers(sigmas):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=sigmas)
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    theirs, _, t = run_scheduler(scheduler, 12, noise, mlp)
    options = {"schedule": EDM(), "steps": 12, "noise": noise, "spacing": sigmas}
    assert worst_difference(run_ours((2, 8), mlp, solver="euler", **options), theirs) <= 1e-5
    assert np.allclose(solve(Recipe("euler", 12, EDM(), "edm", Spacing(sigmas=sigmas))).t, t, atol=1e-6)


def upstream_sample():
    """The sample and the noise of diffusers' scheduler tests."""
    ramp = torch.arange(768.0)
    shaped = [r.reshape(3, 8, 8, 4) / 768 for r in (ramp, ramp.flip(-1))]
    return [x.permute(3, 0, 1, 2).contiguous() for x in shaped]


def upstream_sigma_loop(recipe, y, generator):
    """The loop of diffusers' Euler tests on our rows.

    They hand the scaled model input to `step` as if it were the state, which pipelines don't. So the rows are
    taken back from x = alpha y to y, the state over the data's weight.
    """
    rows = solve(recipe)
    grid = recipe.schedule.grid(recipe.steps, recipe.spacing, "sigma")
    first = recipe.begin or 0
    for k in range(len(rows)):
        alpha, alpha_next = grid.alpha[first + k], grid.alpha_next[first + k]
        y = y * alpha
        out = upstream_toy(y, float(rows.t[k]))
        c = rows.coefficients[k]
        y = c[0] * alpha / alpha_next * y + c[1] / alpha_next * out
        if rows.draws[k]:
            y = y + rows.noise_scale[k] / alpha_next * torch.randn(y.shape, generator=generator)
    return float(y.abs().sum())


T1100 = VP(T=1100)


@pytest.mark.parametrize(
    ("solver", "prediction", "sigmas", "total"),
    [
        ("euler", "eps", None, 10.0807),
        ("euler", "eps", "karras", 124.522995),
        ("euler_ancestral", "eps", None, 152.3192),
        ("euler_ancestral", "v", None, 108.4439),
    ],
)
def test_sums_of_upstream_euler_tests(solver, prediction, sigmas, total):
    x, _ = upstream_sample()
    recipe = Recipe(solver, 10, T1100, prediction, Spacing("linspace", sigmas))
    ours = upstream_sigma_loop(recipe, x.double() * T1100.sigmas[-1], torch.Generator().manual_seed(0))
    assert ours == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("solver", "total"), [("euler", 57062.9297), ("euler_ancestral", 56163.0508)])
def test_image_to_image_sums_of_upstream_tests(solver, total):
    x, noise = upstream_sample()
    recipe = Recipe(solver, 10, T1100, "eps", begin=8)
    rows = solve(recipe)
    image = x.double() * T1100.sigmas[-1]
    state = (rows.start_scale * image + rows.init_scale * noise) / rows.start_scale
    ours = upstream_sigma_loop(recipe, state, torch.Generator().manual_seed(0))
    assert ours == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(
    ("solver", "options", "total"),
    [
        ("flow_euler", {"schedule": Flow(time_scale=1000.0)}, 133.362030),
        ("flow_euler", {"schedule": Flow(3.0, time_scale=1000.0)}, 129.349457),
        ("flow_euler", {"schedule": Flow(3.0, time_scale=1000.0), "spacing": "karras"}, 125.268394),
        ("heun", {"schedule": Flow(3.0, time_scale=1000.0)}, 144.159393),
    ],
)
def test_sums_of_flow_matching(solver, options, total):
    x, _ = upstream_sample()
    ours = sample(upstream_toy, x.shape, solver=solver, steps=10, noise=x, **options)
    assert float(ours.abs().sum()) == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(
    ("prediction", "sigmas", "mean"),
    [("eps", None, 0.3301), ("v", None, 0.2251), ("v", "karras", 0.2096)],
)
def test_means_of_upstream_dpm_solver_tests(prediction, sigmas, mean):
    x, _ = upstream_sample()
    spacing = Spacing("linspace", sigmas, final="sigma_min")
    recipe = Recipe("dpmpp_2m", 10, VP(), prediction, spacing, lower_order_final=False)
    assert float(march(recipe, x.double(), upstream_toy)[-1].abs().mean()) == pytest.approx(mean, abs=1e-3)
