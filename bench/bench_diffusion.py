"""What a user feels: 50 DDIM steps of the zoo's UNet, the engine against the same network in diffusers' loop.

Their side is the plain module (every op on its PyTorch reference) in the loop of a diffusers pipeline, from
the same starting noise, without guidance and with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine import baselines, ops, zoo
from aigc_engine.load import sampler_of
from bench.case import Case, Work, require
from bench.check import max_difference

NAME, STEPS = "digits-diffusion", 50
BOUND = 1e-4


def cases() -> Iterator[Case]:
    for n, guidance, target in ((64, 1.0, 1.15), (64, 1.5, 1.15), (1, 1.0, None), (8, 1.0, None)):
        name = f"ddim{STEPS}-{n}-guidance{guidance:g}"
        against = "plain module in diffusers' DDIM loop"
        yield Case("diffusion", name, against, partial(_work, n, guidance, name), target, seconds=20.0)


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
