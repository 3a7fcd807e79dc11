"""What a user feels: 50 DDIM steps, the engine against the same network in diffusers' loop.

The zoo's UNet: their side is the plain module (every op on its PyTorch reference) in the loop of a diffusers
pipeline, from the same starting noise, without guidance and with it. DDPM's UNet of CIFAR-10: their side is
the module as it is, channels-last, in the loop of diffusers' pipeline, ours is `sample` with it accelerated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aigc_engine import accelerate, baselines, native, ops, sample, zoo
from aigc_engine.load import sampler_of
from bench.case import Case, Work, require
from bench.check import max_difference
from bench.networks import build

NAME, STEPS = "digits-diffusion", 50
BOUND = 1e-4
BFLOAT16_BOUND = 1.5  # times eager's own error


def cases() -> Iterator[Case]:
    for n, guidance, target in ((64, 1.0, 1.15), (64, 1.5, 1.15), (1, 1.0, None), (8, 1.0, None)):
        name = f"ddim{STEPS}-{n}-guidance{guidance:g}"
        against = "plain module in diffusers' DDIM loop"
        yield Case("diffusion", name, against, partial(_work, n, guidance, name), target, seconds=20.0)
    for dtype in (torch.bfloat16, torch.float32):
        name = f"ddim{STEPS}-cifar10-{str(dtype).removeprefix('torch.')}"
        target = 2.5 if dtype == torch.bfloat16 and native.products()[0] else None  # promised with tiles
        work = partial(_pipeline_work, dtype, name)
        yield Case(
            "diffusion",
            name,
            "eager module in the loop of diffusers' DDIMPipeline",
            work,
            target,
            seconds=30.0,
        )


def _work(n: int, guidance: float, name: str) -> Work:
    checkpoint = zoo.load(NAME)
    labels = [i % 10 for i in range(n)]
    sampler: Any = sampler_of(checkpoint)
    ours = partial(
        sampler.sample,
        n,
        seed=0,
        label=labels,
        steps=STEPS,
        solver="ddim",
        spacing="trailing",
        guidance=guidance,
    )
    theirs = baselines.on_reference(_diffusers_loop(checkpoint, labels, guidance))

    def verify() -> float:
        return require(name, max_difference(ours(), theirs()), BOUND)

    return Work(ours, theirs, verify, items=n, unit="images")


def _diffusers_loop(checkpoint: zoo.Checkpoint, labels: list[int], guidance: float) -> Callable[[], Tensor]:
    from diffusers import DDIMScheduler

    model: Any = checkpoint.model
    config = checkpoint.config
    betas = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}
    predictions = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
    scheduler = DDIMScheduler(
        num_train_timesteps=config["schedule"]["timesteps"],
        beta_schedule=betas[config["schedule"]["name"]],
        prediction_type=predictions[config["prediction"]],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    n, c = len(labels), model.config
    noise = ops.philox_normal(torch.arange(n), (c.channels, c.image_size, c.image_size))
    guided = guidance != 1.0
    label = torch.tensor(labels + [model.null_label] * n if guided else labels)

    def run() -> Tensor:
        torch.randn(noise.shape)  # in place of the engine's, whose noise is taken so that results compare
        scheduler.set_timesteps(STEPS)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
            out = model(inputs, t.expand(len(inputs)).float(), label)
            if guided:
                cond, uncond = out.chunk(2)
                out = uncond + guidance * (cond - uncond)
            x = scheduler.step(out, t, x, eta=0.0, return_dict=False)[0]
        return x.clamp(-1, 1)

    return run


class _Denoiser(nn.Module):
    """A UNet of diffusers as `sample` calls it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
        return self.unet(x, t, return_dict=False)[0]


def _pipeline_work(dtype: torch.dtype, name: str) -> Work:
    unet, _, _ = build("ddpm_cifar10_batch_1", dtype)
    fast = accelerate(_Denoiser(unet).eval())
    theirs, truth = _pipeline(unet), _pipeline(copy.deepcopy(unet).float())
    noise = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def ours() -> Tensor:
        x = sample(
            fast, (1, 3, 32, 32), solver="ddim", steps=STEPS, spacing="leading", noise=noise, dtype=dtype
        )
        return (x / 2 + 0.5).clamp(0, 1)

    def verify() -> float:
        got, eager = ours(), theirs()
        if dtype == torch.float32:
            return require(name, max_difference(got, eager), BOUND)
        exact = truth()
        require(name, (got - exact).norm().item(), BFLOAT16_BOUND * (eager - exact).norm().item())
        return max_difference(got, eager)

    return Work(ours, theirs, verify, items=1, unit="images")


def _pipeline(unet: nn.Module) -> Callable[[], Tensor]:
    """What diffusers' DDIMPipeline does, but that it can't give bfloat16 images."""
    from diffusers import DDIMScheduler

    unet = unet.to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(clip_sample=False)

    @torch.no_grad()
    def run() -> Tensor:
        drawn = torch.Generator().manual_seed(0)
        dtype = next(unet.parameters()).dtype
        image = torch.randn((1, 3, 32, 32), generator=drawn).to(dtype)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            image = scheduler.step(unet(image, t).sample, t, image, eta=0.0).prev_sample
        return (image.float() / 2 + 0.5).clamp(0, 1)

    return run
