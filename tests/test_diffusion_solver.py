"""Schedules, spacing and solvers against what they must be by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aigc_engine.diffusion import EDM, VP, Flow, Recipe, Spacing, sample, update_table
from aigc_engine.diffusion.schedule import beta_schedule, schedule_of
from aigc_engine.diffusion.solver import SOLVERS, solve
from aigc_engine.diffusion.spacing import spacing_of
from tests.diffusion_toys import column, gaussian_x0, march

MEAN, DEVIATION = 0.7, 0.4
ODE = ("ddim", "euler", "heun", "dpmpp_2m", "flow_euler")


def gaussian_error(recipe: Recipe) -> float:
    """Distance from the ODE's own solution for N(MEAN, DEVIATION^2) at the end of a run, in float64.

    (x - alpha MEAN) / sqrt(alpha^2 DEVIATION^2 + sigma^2) is constant along the probability-flow ODE.
    """
    grid = recipe.schedule.grid(recipe.steps, recipe.spacing, SOLVERS[recipe.solver].convention)
    at = dict(zip(np.round(grid.t, 9).tolist(), zip(grid.alpha, grid.sigma, strict=True), strict=True))

    def model(x, t):
        alpha, sigma = at[round(t, 9)]
        return gaussian_x0(x, alpha, sigma, MEAN, DEVIATION)

    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[None]
    states = march(recipe, noise, model)

    def standard(x, alpha, sigma):
        return (x - alpha * MEAN) / math.sqrt((alpha * DEVIATION) ** 2 + sigma**2)

    begin = standard(states[0], grid.alpha[0], grid.sigma[0])
    end = standard(states[-1], grid.alpha_next[-1], grid.sigma_next[-1])
    return float((end - begin).abs().max())


@pytest.mark.parametrize(
    ("solver", "schedule", "spacing", "order"),
    [
        ("euler", EDM(0.02, 20.0), Spacing(sigmas="karras", final="sigma_min"), 1),
        ("heun", EDM(0.02, 20.0), Spacing(sigmas="karras", final="sigma_min"), 2),
        ("dpmpp_2m", EDM(0.02, 20.0), Spacing(sigmas="karras", final="sigma_min"), 2),
        ("euler", VP(), Spacing(sigmas="exponential", final="sigma_min"), 1),
        ("heun", VP(), Spacing(sigmas="exponential", final="sigma_min"), 2),
        ("ddim", VP("cosine", 3840), Spacing("trailing", final="sigma_min"), 1),
        ("flow_euler", Flow(3.0), Spacing(sigmas="exponential", sigma_min=0.02, final="sigma_min"), 1),
        ("heun", Flow(), Spacing(sigmas="exponential", sigma_min=0.02, final="sigma_min"), 2),
        ("dpmpp_2m", Flow(), Spacing(sigmas="exponential", sigma_min=0.02, final="sigma_min"), 2),
    ],
)
def test_order_of_convergence(solver, schedule, spacing, order):
    def error(intervals):
        steps = intervals + (spacing.timesteps is None)  # the last of these steps stays at sigma_min
        return gaussian_error(Recipe(solver, steps, schedule, "x0", spacing, lower_order_final=False))

    errors = [error(n) for n in (80, 160, 320)]
    measured = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(p - order) < 0.2 for p in measured), (measured, errors)


SCHEDULES = {
    "linear": VP(),
    "scaled_linear": schedule_of("scaled_linear"),
    "cosine": VP("cosine", 200),
    "flow": Flow(3.0),
    "edm": EDM(),
    "edm_raw": EDM(preconditioned=False),
}


def outputs(prediction, schedule, alpha, sigma, x0, eps):
    """What a perfect model of one data point says."""
    if prediction == "edm":  # F = (D - c_skip x) / c_out
        level, data = sigma / alpha, schedule.sigma_data
        x, total = x0 + level * eps, level**2 + data**2
        return (x0 - data**2 / total * x) / (level * data / total**0.5)
    return {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0, "flow": eps - x0}[prediction]


COMBINATIONS = [
    (solver, name, prediction)
    for solver in SOLVERS
    for name in SCHEDULES
    for prediction in ("eps", "v", "x0", "flow", "edm")
    if (solver != "flow_euler" or name == "flow")
    and (prediction != "edm" or name == "edm")
    and (prediction != "eps" or name != "flow")  # nothing is left of the data at t = 1
]


@pytest.mark.parametrize(("solver", "name", "prediction"), COMBINATIONS)
def test_a_single_data_point_is_followed_exactly(solver, name, prediction):
    """With one data point every solver is exact: each row leads from (alpha, sigma) to (alpha', sigma')."""
    schedule = SCHEDULES[name]
    x0, eps = 0.3, -1.7
    for steps in (1, 2, 9, 20):
        recipe = Recipe(solver, steps, schedule, prediction)
        rows, grid = solve(recipe), schedule.grid(steps, Spacing(), SOLVERS[solver].convention)
        nodes = [(k + 1) // 2 if solver == "heun" else k for k in range(len(rows))]
        x, before = grid.alpha[0] * x0 + grid.sigma[0] * eps, (0.0, 0.0)
        for k, node in enumerate(nodes):
            out = outputs(prediction, schedule, grid.alpha[node], grid.sigma[node], x0, eps)
            assert np.isclose(rows.preview[k] @ (x, out), x0, rtol=1e-7, atol=1e-9)
            step = k // 2 if solver == "heun" else k
            alpha, sigma = grid.alpha_next[step], grid.sigma_next[step]
            kept = math.sqrt(max(sigma**2 - rows.noise_scale[k] ** 2, 0.0))
            following = rows.coefficients[k] @ (x, out, *before)
            assert np.isclose(following, alpha * x0 + kept * eps, rtol=1e-6, atol=1e-8), (steps, k)
            before = (x, out)
            if k + 1 < len(nodes):
                x = grid.alpha[nodes[k + 1]] * x0 + grid.sigma[nodes[k + 1]] * eps
        assert rows.noise_scale[-1] < 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_model_ends_at_its_constant(solver):
    schedule = "flow" if solver == "flow_euler" else "linear"
    target = torch.linspace(-1, 1, 6).expand(2, 6)
    for steps in (1, 4, 16):
        options = {"solver": solver, "steps": steps, "schedule": schedule, "prediction": "x0"}
        result = sample(lambda x, t, cond: target.clone(), (2, 6), **options)
        assert torch.allclose(result, target, atol=1e-6)


def closed_form_denoiser(schedule):
    """E[x0 | x_t] for N(MEAN, DEVIATION^2) data."""

    def denoiser(x, t, cond):
        t = t.double().numpy()
        if isinstance(schedule, EDM):
            level = np.exp(4 * t)
            alpha, sigma = schedule.c_in(level), level * schedule.c_in(level)
        else:
            alpha, sigma = schedule.alpha_sigma(t)
        alpha, sigma = (column(torch.from_numpy(scale), x) for scale in (alpha, sigma))
        return gaussian_x0(x, alpha, sigma, MEAN, DEVIATION)

    return denoiser


@pytest.mark.parametrize(
    ("solver", "schedule", "spacing", "eta", "steps"),
    [
        ("ddpm", "linear", None, 0.0, 500),
        ("ddim", "linear", None, 0.0, 200),
        ("ddim", "cosine", "trailing", 0.5, 200),
        ("euler", "linear", "karras", 0.0, 200),
        ("euler_ancestral", "linear", "polyexponential", 0.0, 400),
        ("heun", "edm", None, 0.0, 40),
        ("dpmpp_2m", "linear", None, 0.0, 60),
        ("dpmpp_2m_sde", "linear", None, 0.0, 200),
        ("flow_euler", "flow", "trailing", 0.0, 200),
    ],
)
def test_gaussian_data_keep_mean_and_deviation(solver, schedule, spacing, eta, steps):
    schedule = schedule_of(schedule)
    shape = (8, 2048)
    result = sample(
        closed_form_denoiser(schedule),
        shape,
        solver=solver,
        steps=steps,
        schedule=schedule,
        prediction="x0",
        spacing=spacing,
        eta=eta,
        seed=11,
    )
    # Four standard errors of 16,384 draws (0.0125 and 2.2 %) and the bias of first-order steps.
    assert abs(result.mean().item() - MEAN) < 0.0125
    assert abs(result.std().item() / DEVIATION - 1) < 0.03
    assert abs(torch.corrcoef(result).fill_diagonal_(0)).max() < 0.1  # rows are independent


def test_fresh_noise_makes_up_what_was_taken():
    """c^2 + s^2 keeps the noise at sigma' for any eta, and eta = 0 adds none."""
    for eta in (0.0, 0.4, 1.0):
        rows = solve(Recipe("ddim", 10, VP(), "x0", Spacing("trailing"), eta=eta))
        grid = VP().grid(10, Spacing("trailing"), "ddim")
        total = (rows.coefficients[:, 0] * grid.sigma) ** 2 + rows.noise_scale**2
        assert np.allclose(total, grid.sigma_next**2)
        assert (rows.noise_scale[:-1] > 0).all() == (eta > 0)
    ancestral = solve(Recipe("ddpm", 10, VP(), "eps", Spacing("trailing")))
    assert np.allclose(
        ancestral.coefficients,
        solve(Recipe("ddim", 10, VP(), "eps", Spacing("trailing"), eta=1.0)).coefficients,
    )


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_step_that_stays_adds_no_noise(solver):
    eta = 1.0 if solver == "ddim" else 0.0
    spacing = Spacing("leading" if solver in ("ddpm", "ddim") else None, final="sigma_min")
    if solver not in ("ddpm", "ddim"):
        spacing = Spacing(sigmas="karras", final="sigma_min")
    rows = solve(Recipe(solver, 20, VP(), "x0", spacing, eta=eta))
    assert rows.noise_scale[-1] == 0 and (rows.noise_scale[:-1] > 0).all()


def test_beta_schedules():
    assert np.allclose(beta_schedule("linear", 1000)[[0, -1]], [1e-4, 0.02])
    assert np.allclose(np.sqrt(beta_schedule("scaled_linear", 5, 0.01, 0.04)), [0.1, 0.125, 0.15, 0.175, 0.2])
    cosine = VP("cosine")
    t = np.array([1, 250, 500, 900])
    f = np.cos((np.append(0, t + 1) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert np.allclose(cosine.alpha_sigma(t)[0] ** 2, f[1:] / f[0], rtol=1e-5)
    assert beta_schedule("cosine", 1000).max() == np.float32(0.999)
    assert VP(tuple(beta_schedule("linear", 1000).tolist())).sigmas.tolist() == VP().sigmas.tolist()


def test_continuous_time_inverts():
    vp = VP()
    t = np.array([0.0, 0.25, 17.5, 998.9, 999.0])
    alpha, sigma = vp.alpha_sigma(t)
    assert np.allclose(alpha**2 + sigma**2, 1)
    assert np.allclose(
        vp.timestep(sigma / alpha), t, atol=0.06
    )  # linear one way, linear in the log the other
    assert np.allclose(vp.timestep(vp.sigmas), np.arange(1000))


@pytest.mark.parametrize(
    ("solver", "spacing", "steps", "t"),
    [
        ("ddim", "leading", 4, [750, 500, 250, 0]),
        ("ddim", Spacing("leading", steps_offset=1), 4, [751, 501, 251, 1]),
        ("ddim", "linspace", 4, [999, 666, 333, 0]),
        ("ddpm", "trailing", 4, [999, 749, 499, 249]),
        ("euler", None, 3, [999, 499.5, 0]),
        ("dpmpp_2m", None, 4, [999, 749, 500, 250]),
        ("dpmpp_2m", "leading", 4, [800, 600, 400, 200]),
        ("heun", None, 3, [999, 499.5, 499.5, 0, 0]),
    ],
)
def test_timesteps(solver, spacing, steps, t):
    assert solve(Recipe(solver, steps, VP(), "eps", spacing_of(spacing))).t.tolist() == t


def test_trailing_never_reaches_below_zero():
    # In these counts T / n rounds so that numpy's arange(T, 0, -T / n) has n + 1 entries.
    for steps in (61, 103, 121, 201):
        rows = solve(Recipe("ddim", steps, VP(), "eps", Spacing("trailing")))
        assert len(rows) == steps and rows.t.min() >= 0


def test_dpm_solver_starts_at_the_last_timestep_whatever_the_sigmas():
    for betas in ("linear", "scaled_linear", "cosine"):
        for sigmas in ("karras", "exponential", "polyexponential"):
            rows = solve(Recipe("dpmpp_2m", 12, schedule_of(betas), "eps", Spacing(sigmas=sigmas)))
            assert rows.t[0] == 999 and (rows.t == rows.t.round()).all()


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "polyexponential"])
def test_spread_sigmas_keep_their_ends(sigmas):
    grid = EDM(0.01, 50.0).grid(9, Spacing(sigmas=sigmas), "sigma")
    level = grid.sigma / grid.alpha
    assert np.isclose(level[0], 50) and np.isclose(level[-1], 0.01) and (np.diff(level) < 0).all()
    moved = VP().grid(9, Spacing(sigmas=sigmas, sigma_min=0.1, sigma_max=5.0), "sigma")
    assert np.allclose((moved.sigma / moved.alpha)[[0, -1]], [5, 0.1])
    assert grid.sigma_next[-1] == 0 and grid.alpha_next[-1] == 1


def test_shapes_of_spread_sigmas():
    def level(**options):
        grid = EDM(0.1, 10.0).grid(3, Spacing(**options), "sigma")
        return (grid.sigma / grid.alpha)[1]

    assert np.isclose(level(sigmas="exponential"), 1.0)
    assert np.isclose(level(sigmas="polyexponential"), 1.0)
    assert np.isclose(level(sigmas="polyexponential", rho=2.0), 0.1 * 100**0.25)
    assert np.isclose(level(sigmas="karras", rho=1.0), 5.05)
    assert np.isclose(level(sigmas="karras"), ((10 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7)


def test_a_table_sorts_rows_by_evaluations():
    table = update_table([Recipe(s, n, VP(), "eps") for s, n in (("ddim", 3), ("heun", 4), ("euler", 5))])
    assert table.order.tolist() == [1, 2, 0] and table.evaluations == (7, 5, 3)
    assert table.active == (3, 3, 3, 2, 2, 1, 1)
    assert table.streams[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert table.coefficients.dtype == torch.float32 and not table.guided
    assert (table.coefficients[3:, 2] == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe("dpm", 5, VP(), "eps"), r"solver 'dpm', expected one of \('ddpm'"),
        (lambda: Recipe("ddim", 0, VP(), "eps"), "steps 0, expected at least 1"),
        (lambda: Recipe("ddim", 5, VP(), "epsilon"), "prediction 'epsilon', expected one of"),
        (lambda: Recipe("ddim", 5, VP(), "eps", guidance=math.nan), "guidance nan, expected a finite number"),
        (lambda: Recipe("ddim", 5, VP(), "eps", eta=1.5), "eta 1.5, expected a number from 0 to 1"),
        (
            lambda: Recipe("euler", 5, VP(), "eps", eta=0.5),
            "eta 0.5 with euler, expected 0; only ddim takes it",
        ),
        (lambda: Recipe("ddim", 5, VP(), "eps", begin=5), "begin 5, expected 0 to steps - 1 = 4"),
        (lambda: Recipe("flow_euler", 5, VP(), "v"), "flow_euler off a flow"),
        (lambda: Recipe("euler", 5, VP(), "edm"), "prediction edm without its preconditioning"),
        (
            lambda: solve(Recipe("euler", 5, Flow(), "eps")),
            "prediction eps on a schedule that starts at alpha = 0",
        ),
        (
            lambda: solve(Recipe("ddim", 1001, VP(), "eps")),
            "steps 1001, expected at most the schedule's T = 1000",
        ),
        (
            lambda: solve(Recipe("ddim", 5, VP(), "eps", Spacing(sigmas="karras"))),
            "sigmas 'karras' with ddim",
        ),
        (lambda: solve(Recipe("dpmpp_2m", 1000, VP(), "eps")), r"steps 1000 repeats timesteps \(linspace"),
        (
            lambda: solve(Recipe("ddim", 1000, VP(), "eps", Spacing("leading", steps_offset=1))),
            "steps_offset 1 puts the first timestep at 1000, expected at most 999",
        ),
        (lambda: solve(Recipe("euler", 5, Flow(), "flow", Spacing("leading"))), "spacing leading on a flow"),
        (lambda: solve(Recipe("euler", 5, EDM(), "edm", Spacing("trailing"))), "spacing trailing on EDM"),
        (lambda: Spacing("even"), "timesteps 'even', expected one of"),
        (lambda: Spacing(sigmas="lu"), "sigmas 'lu', expected one of"),
        (lambda: Spacing(final="one"), "final 'one', expected one of"),
        (lambda: Spacing(rho=7.0), "rho 7.0 without sigmas"),
        (
            lambda: Spacing(sigmas="karras", sigma_min=-1.0),
            "sigma_min -1.0, expected a positive finite number",
        ),
        (lambda: Spacing(steps_offset=-1), "steps_offset -1, expected an int >= 0"),
        (lambda: VP("quadratic"), "betas 'quadratic', expected one of"),
        (lambda: VP(T=1), "T 1, expected an int >= 2"),
        (lambda: VP((0.1, 0.2)), "betas has 2 values, expected T = 1000"),
        (lambda: VP(beta_end=1.5), r"betas outside \(0, 1\)"),
        (lambda: Flow(shift=0.0), "shift 0.0, expected a positive finite number"),
        (lambda: EDM(2.0, 1.0), "expected 0 < sigma_min < sigma_max"),
        (lambda: schedule_of("karras"), "schedule 'karras', expected one of"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=f"^sample: .*{message}"):
        make()
