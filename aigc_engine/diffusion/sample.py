"""Sampling from a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_engine.diffusion import arguments
from aigc_engine.diffusion.arguments import Generators
from aigc_engine.diffusion.control import Callback, Event, Monitor
from aigc_engine.diffusion.guidance import Conditions
from aigc_engine.diffusion.loop import BUFFERS, Denoiser, Draw, Evaluator, Run
from aigc_engine.diffusion.schedule import VP, Schedule, schedule_of
from aigc_engine.diffusion.solver import Recipe, UpdateTable, update_table
from aigc_engine.diffusion.spacing import Spacing, spacing_of
from aigc_engine.graph import Accelerated
from aigc_engine.graph.options import Options
from aigc_engine.latents import count, integer, seed_rows
from aigc_engine.models.unet import UNet
from aigc_engine.ops import linear_update, philox_normal
from aigc_engine.planned import Planned, planned
from aigc_engine.zoo import Checkpoint

HEUN_SIGMA_MAX = 80.0  # Karras et al. 2022, table 1


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    solver: str | Sequence[str] = "dpmpp_2m",
    steps: int | Sequence[int] = 20,
    seed: int | Sequence[int] = 0,
    schedule: str | Schedule = "linear",
    prediction: str | None = None,
    spacing: str | Spacing | None | Sequence[str | Spacing | None] = None,
    eta: float | Sequence[float] = 0.0,
    guidance: float | Sequence[float] = 1.0,
    cond: Any = None,
    uncond: Any = None,
    start: Tensor | None = None,
    strength: float | Sequence[float] | None = None,
    noise: Tensor | None = None,
    generator: Generators | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    cancel: Event | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Samples from a diffusion or flow model, a row per seed, all rows in one batch.

    .. math:: x_{k+1} = c_0 x_k + c_1 f(x_k, t_k, \text{cond}) + c_2 f(x_k, t_k, \text{uncond})
        + c_3 x_{k-1} + c_4 f_{k-1} + c_5 f^\text{uncond}_{k-1} + s z

    Each solver is a table of such numbers (`solver.Recipe` names the papers), in diffusers' conventions.
    Clipping and thresholding of x0 aren't linear and aren't done. A row depends on its own seed and arguments
    only: n rows with seed s equal n single calls with seeds s, s + 1, ..., as far as the denoiser's own do.

    Args:
        denoiser: called as denoiser(x, t, cond) with x (rows, ...) in `dtype`, t (rows,) float32; returns the
            prediction in x's shape, in a new tensor each time. Under guidance it gets 2 rows: cond's, then
            uncond's.
        shape: (n, ...) of the result, n >= 1, such as (n, C, H, W).
        solver: ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde or flow_euler. Like steps,
            seed, spacing, eta, guidance and strength: one for all rows, or a list or tuple of n.
        steps: >= 1. Rows that are done leave the batch.
        seed: rows take seed, seed + 1, ...; or n seeds in [-2^63, 2^63).
        schedule: "linear", "scaled_linear", "cosine", "flow", "edm", or a VP, Flow or EDM.
        prediction: "eps", "v", "x0", "flow" or "edm"; None is the schedule's usual one.
        spacing: "leading", "linspace", "trailing", "karras", "exponential", "polyexponential" or a Spacing;
            None is the solver's usual one.
        eta: ddim's share of fresh noise in [0, 1].
        guidance: g in uncond + g (cond - uncond).
        cond, uncond: what the denoiser gets, with a leading dimension of n: a tensor, or a dict, tuple or
            list of them; any other object is passed on as it is. uncond is needed with guidance only.
        start: image to start from (n, ...), with the noise of the time at which it enters.
        strength: share of the steps done from `start`, in (0, 1]; None is 0.8.
        noise: starting noise (n, ...) of unit variance, in place of the seeds'.
        generator: torch.Generator (or n of them) for all noise, drawn as diffusers draws, in place of seeds.
        callback: called with a `Progress` after each evaluation; returning False cancels.
        progress: show a progress bar on stderr.
        cancel: an event; the run stops at the next evaluation once it is set.
        device: of the computation; None is that of the denoiser's parameters, of start or of noise.
        dtype: of the denoiser's input: float32, bfloat16 or float16; None is that of its parameters. The
            state stays in float32.

    Returns:
        (n, ...) float32.

    Raises:
        TypeError, ValueError: naming the argument and what it may be.
        RuntimeError: NaN or Inf, naming evaluation and row.
        Cancelled: by callback or cancel.
    """
    rows = arguments.batch_shape(shape)
    n = rows[0]
    recipes = arguments.recipes(
        n,
        solver=solver,
        steps=steps,
        schedule=schedule,
        prediction=prediction,
        spacing=spacing,
        eta=eta,
        guidance=guidance,
        from_image=start is not None,
        strength=strength,
    )
    device, dtype = arguments.placement(denoiser, device, dtype, (start, noise))
    arguments.check_state("start", start, rows, device)
    arguments.check_state("noise", noise, rows, device)
    arguments.check_generator(generator, n)
    table = update_table(recipes).to(device)
    seeds = seed_rows("sample", n, seed)[table.order].to(device)
    uniform = len(set(table.evaluations)) == 1
    conditions = Conditions(cond, uncond, table.order, guided=table.guided, uniform=uniform, device=device)
    draw = None if generator is None else Draw(generator, rows, dtype, table.order.to(device))
    buffers = torch.empty((BUFFERS, *rows), dtype=torch.float32, device=device)
    buffers[0] = _starting_state(table, seeds, start, noise, draw, rows[1:])
    with Monitor(len(table), callback, progress, cancel) as monitor:
        monitor.check(0)
        evaluate = Evaluator(denoiser, conditions, table, dtype)
        return Run(table, evaluate, buffers, seeds, draw, monitor)()


def _starting_state(
    table: UpdateTable,
    seeds: Tensor,
    start: Tensor | None,
    noise: Tensor | None,
    draw: Draw | None,
    shape: tuple[int, ...],
) -> Tensor:
    """start_scale image + init_scale noise, (B, ...) in the table's order."""
    order = table.order.to(seeds.device)
    if noise is not None:
        noise = noise[order].float()
    elif draw is not None:
        noise = draw()
    else:
        noise = philox_normal(seeds, shape, device=seeds.device)
    if start is None:
        return linear_update([noise], table.init_scale[:, None])
    scales = torch.stack([table.start_scale, table.init_scale], dim=1)
    return linear_update([start[order].float(), noise], scales)


class DiffusionSampler:
    """Images from a class-conditional denoiser, with the defaults it was trained for.

    A row is a function of its own seed, label and options: n samples with `seed=s` equal n single calls with
    seeds s, s + 1, ... bit for bit, in one batch. The sampler keeps no state: threads may share it.

    References:
        J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239
        J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598

    Args:
        model: UNet(x, t, label), or what `accelerate` makes of one; put into eval mode; its weights are
            shared, not copied. Label `null_label` stands for no class.
        schedule, prediction: what it was trained on.
        solver, steps, guidance, spacing: taken where a call names none.
    """

    def __init__(
        self,
        model: UNet | Accelerated,
        *,
        schedule: str | Schedule = "linear",
        prediction: str | None = None,
        solver: str = "dpmpp_2m",
        steps: int = 20,
        guidance: float = 1.0,
        spacing: str | Spacing | None = None,
    ) -> None:
        self._network = Planned(
            model, "" if isinstance(model, Accelerated) else "accelerate(model) makes plans"
        )
        model = self._network.module
        if not isinstance(model, UNet):
            raise TypeError(
                f"DiffusionSampler: model {type(model).__name__}, expected a UNet; "
                "aigc_engine.sample takes any denoiser"
            )
        self.model = model.eval()
        config = model.config
        self.image_shape = (config.channels, config.image_size, config.image_size)
        self.num_classes = config.num_classes
        self.schedule = schedule_of(schedule)
        self.prediction = prediction or self.schedule.default_prediction
        self.solver, self.steps, self.guidance = solver, steps, guidance
        self.spacing = spacing_of(spacing)
        self._recipe(solver, steps, guidance)  # bad defaults raise now

    def _recipe(self, solver: str, steps: int, guidance: float) -> Recipe:
        return Recipe(solver, steps, self.schedule, self.prediction, self.spacing, guidance=guidance)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        precision: str | None = None,
        quantize: str | None = None,
        offload: str | Path | None = None,
        strict: bool = False,
    ) -> DiffusionSampler:
        """The sampler of a checkpoint of family "diffusion".

        Its config.json has "schedule" ({"name", "timesteps"}), "prediction", and the defaults "sampling".

        Args:
            checkpoint: as `aigc_engine.zoo.load` gives it.
            dtype, precision, quantize, offload, strict: as `aigc_engine.accelerate` takes them; with any of
                them the network runs as plans, captured at the first call if the checkpoint has no graph.

        Raises:
            TypeError: another dtype.
            ValueError: what config.json should have is missing or names what doesn't exist; unknown precision
                or quantize, or offload is no folder.
            UnsupportedError: options without a native module; at a call: strict, and a node is left to torch.
        """
        options = Options(dtype, precision, quantize, offload, strict)
        config = checkpoint.config
        try:
            schedule = schedule_of(config["schedule"]["name"], config["schedule"]["timesteps"])
            defaults = {"prediction": config["prediction"], **config["sampling"]}
            sampler = cls(checkpoint.model, schedule=schedule, **defaults)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"load: config of {checkpoint.name!r} has no usable schedule, prediction and sampling "
                f"({error}); use the config.json saved with these weights"
            ) from None
        sampler._network = planned(checkpoint, options)
        return sampler

    def explain(self) -> str:
        """How calls of the model run: as which plan, or why op by op."""
        return self._network.explain()

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | Sequence[int] = 0,
        label: int | Sequence[int] | Tensor | None = None,
        steps: int | Sequence[int] | None = None,
        solver: str | Sequence[str] | None = None,
        guidance: float | Sequence[float] | None = None,
        spacing: str | Spacing | None | Sequence[str | Spacing | None] = None,
        eta: float | Sequence[float] = 0.0,
        start: Tensor | None = None,
        strength: float | Sequence[float] | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        cancel: Event | None = None,
    ) -> Tensor:
        """Samples n images.

        Args:
            n: number of images, >= 1; None takes as many as seed or label has, else one.
            seed: int, rows take seed, seed + 1, ...; or n seeds.
            label: class of all, or n classes, in [0, num_classes); None samples without a class.
            steps, solver, guidance, spacing: as in `sample`; None takes the sampler's own (spacing of heun:
                Karras sigmas up to 80). Without a label guidance has nothing to do.
            eta, start, strength, callback, progress, cancel: as in `sample`.

        Returns:
            (n, C, H, W) float32, clamped to [-1, 1].

        Raises:
            TypeError, ValueError: naming the argument.
            RuntimeError: NaN or Inf, naming evaluation and row.
            Cancelled: by callback or cancel.
        """
        n = self._count(n, seed, label)
        device = next(self.model.parameters()).device
        null = torch.full((n,), self.model.null_label, device=device)
        labels = null if label is None else self._labels(label, n).to(device)
        if guidance is None:
            guidance = self.guidance
        if solver is None:
            solver = self.solver
        if spacing is None:
            rows = arguments.per_row("solver", solver, n)
            spacing = [self._usual_spacing(name) for name in rows]
        images = sample(
            self._network.chosen()[0],
            (n, *self.image_shape),
            solver=solver,
            steps=self.steps if steps is None else steps,
            seed=seed,
            schedule=self.schedule,
            prediction=self.prediction,
            spacing=spacing,
            eta=eta,
            guidance=1.0 if label is None else guidance,
            cond=labels,
            uncond=null,
            start=start,
            strength=strength,
            callback=callback,
            progress=progress,
            cancel=cancel,
        )
        return images.clamp_(-1.0, 1.0)

    def _usual_spacing(self, solver: str) -> Spacing:
        """The sampler's own, but heun's nodes as its paper lays them.

        Its steps are straight lines in sigma, which even timesteps make too long near pure noise.
        """
        if solver != "heun" or self.spacing.sigmas is not None or not isinstance(self.schedule, VP):
            return self.spacing
        sigma_max = min(HEUN_SIGMA_MAX, float(self.schedule.sigmas[-1]))
        return Spacing(sigmas="karras", sigma_max=sigma_max, final=self.spacing.final)

    @staticmethod
    def _count(n: int | None, seed: Any, label: Any) -> int:
        """n, or the length of what is given per row."""
        if n is not None:
            return count("sample", "n", n)
        for given in (seed, label):
            if isinstance(given, (list, tuple)) or (isinstance(given, Tensor) and given.ndim == 1):
                return max(1, len(given))
        return 1

    def _labels(self, label: int | Sequence[int] | Tensor, n: int) -> Tensor:
        classes = [integer("sample", "label", value) for value in arguments.per_row("label", label, n)]
        wrong = [value for value in classes if not 0 <= value < self.num_classes]
        if wrong:
            raise ValueError(
                f"sample: label {wrong[0]}, expected 0 to {self.num_classes - 1}, or None for none"
            )
        return torch.tensor(classes)
