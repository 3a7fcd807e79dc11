"""Recipes of the two adversarial models of digits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import zoo
from aigc_engine.evaluate import metrics
from aigc_engine.evaluate.run import CLASSIFIER, ruler
from aigc_engine.gan import GanSampler
from aigc_engine.models.gan import DCGANGenerator, Discriminator, MLPGenerator, choose
from aigc_engine.train.data import batch_indices, load_digits
from aigc_engine.train.digits import CARD, DATA, seeded
from aigc_engine.train.task import Recipe

SAMPLES = 2000


def random_shift(images: Tensor, pixels: int = 2) -> Tensor:
    """Shift each image by up to `pixels` in each direction, black (-1) moving in."""
    B, _, H, W = images.shape
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, B, 1))
    rows, columns = dy + torch.arange(H), dx + torch.arange(W)
    padded = F.pad(images, (pixels,) * 4, value=-1.0)
    row = torch.arange(B)[:, None, None]
    return padded[row, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class GanTask:
    """A generator against a discriminator: relativistic pairing loss with penalties on both sides.

    L_D = E[softplus(-(D(x) - D(G(z))))] + gamma / 2 (E|grad_x D(x)|^2 + E|grad_x D(G(z))|^2),
    L_G = E[softplus(-(D(G(z)) - D(x)))].

    Each fake is compared with a real digit, so a mode that the generator leaves out is always a way for it
    to improve: that is what keeps the ten digits in balance without any choice afterwards. The penalties are
    taken every `penalty_every` steps, on half the batch, with that much more weight. Both sides see images
    shifted at random, so that 9,000 digits aren't learnt by heart.

    References:
        Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", 2024,
        https://arxiv.org/abs/2501.05441
        Jolicoeur-Martineau, "The relativistic discriminator", 2018, https://arxiv.org/abs/1807.00734
        Mescheder et al., "Which Training Methods for GANs do actually Converge?", 2018,
        https://arxiv.org/abs/1801.04406
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020,
        https://arxiv.org/abs/1912.04958 (lazy regularisation)
        Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", 2020,
        https://arxiv.org/abs/2006.10738
    """

    recipe: str
    total_steps = 3000
    ramp = 800
    batch = 32
    peak: float
    ema = 0.998
    gamma = 1.0
    penalty_every = 8
    storage = torch.float16
    config: dict[str, Any]

    def __init__(self, data: Path, seed: int, generator: nn.Module) -> None:
        self.seed = seed
        self.digits, self.held_out = load_digits(data)
        self.exported = generator
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.02  # running statistics over some 50 steps, to go with averaged weights
        self.discriminator = Discriminator(num_classes=10).to(memory_format=torch.channels_last)
        self.models: dict[str, nn.Module] = {"generator": generator, "discriminator": self.discriminator}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(model.parameters(), lr=self.peak, betas=(0.0, 0.9), fused=True)
            for name, model in self.models.items()
        }
        self.card = {**CARD, "Training": f"{self.total_steps} steps of {self.batch} digits, Adam, bfloat16"}

    def _schedule(self, step: int) -> None:
        """Learning rate constant for half the run, then linear to 0; beta_2 from 0.9 to 0.99 at first."""
        rate = self.peak * min(1.0, 2.0 * (1.0 - step / self.total_steps))
        beta2 = 0.9 + 0.09 * min(1.0, step / self.ramp)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = rate, (0.0, beta2)

    def latents(self, label: Tensor) -> Tensor:
        """z (B, latent_dim) of the fakes that are compared with real digits of these labels."""
        return torch.randn(len(label), self.exported.config.latent_dim)

    def train_step(self, step: int) -> dict[str, float]:
        self._schedule(step)
        index = batch_indices(len(self.digits.labels), self.batch, self.seed, step)
        label = self.digits.labels[index]
        real = random_shift(self.digits.images[index])
        with torch.autocast("cpu", torch.bfloat16):
            fake = self.exported(self.latents(label), label).float()
        loss_d, real_score = self._discriminator_step(step, real, random_shift(fake.detach()), label)
        loss_g = self._generator_step(random_shift(fake), label, real_score)
        return {"d": loss_d, "g": loss_g}

    def _discriminator_step(
        self, step: int, real: Tensor, fake: Tensor, label: Tensor
    ) -> tuple[float, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            scores = self.discriminator(torch.cat([real, fake]), label.repeat(2))
        real_score, fake_score = scores.float().chunk(2)
        loss = F.softplus(fake_score - real_score).mean()
        optimizer = self.optimizers["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        if step % self.penalty_every == 0:
            self._penalty(real, fake, label).backward()
        optimizer.step()
        return loss.item(), real_score.detach()

    def _penalty(self, real: Tensor, fake: Tensor, label: Tensor) -> Tensor:
        half = self.batch // 2
        x = torch.cat([real[:half], fake[:half]]).requires_grad_()
        score = self.discriminator(x, label[:half].repeat(2))
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return 0.5 * self.gamma * self.penalty_every / half * gradient.square().sum()

    def _generator_step(self, fake: Tensor, label: Tensor, real_score: Tensor) -> float:
        self.discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            score = self.discriminator(fake, label).float()
        loss = F.softplus(real_score - score).mean()
        optimizer = self.optimizers["generator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.discriminator.requires_grad_(True)
        return loss.item()

    def measure(self, model: nn.Module) -> dict[str, str]:
        """What `evaluate` measures, on the weights as stored; nothing while there is no classifier."""
        if CLASSIFIER not in zoo.names():
            return {}
        sampler = GanSampler(copy.deepcopy(model).to(self.storage).float(), **self.config["sampling"])
        features, probabilities = ruler().read(sampler.sample(SAMPLES, seed=0))
        shares = metrics.class_shares(probabilities)
        distance = ruler().frechet(self.recipe, features)
        return {
            f"rarest, commonest class of {SAMPLES:,} samples": f"{shares.min():.1%}, {shares.max():.1%}",
            "classified with confidence over 0.9": f"{metrics.confident(probabilities):.1%}",
            f"{distance.metric} ({distance.note})": distance.shown,
        }


class DCGANTask(GanTask):
    """The label goes to both sides."""

    recipe, peak = "digits-gan", 5e-4

    def __init__(self, data: Path, seed: int) -> None:
        seeded(seed)
        generator = DCGANGenerator().to(memory_format=torch.channels_last)
        self.config = {
            "family": "gan",
            "arch": "DCGANGenerator",
            "config": dataclasses.asdict(generator.config),
            "sampling": {"truncation": 0.8},
        }
        super().__init__(data, seed, generator)
        self.card["Latent"] = "64 normals, scaled by 0.8 unless a call names another truncation"

    def measure(self, model: nn.Module) -> dict[str, str]:
        rows = super().measure(model)
        if rows:
            sampler = GanSampler(copy.deepcopy(model).to(self.storage).float(), **self.config["sampling"])
            _, probabilities = ruler().read(sampler.sample(SAMPLES, seed=0))
            right = metrics.accuracy(probabilities, torch.arange(SAMPLES) % 10)
            rows["recognised as the class asked for"] = f"{right:.1%}"
        return rows


class MLPTask(GanTask):
    """The generator sees z alone; the discriminator is told which digit each component of z is meant for.

    Ten classes can't be laid out in one Gaussian without borders. Left alone with that, this generator
    blended digits for thousands of steps: 64 % of its samples were clear at step 4000. So z is a mixture of
    ten, and in training each component is compared with the real digits of one label. Labels enter nowhere
    else.
    """

    recipe, peak = "digits-mlp-gan", 1e-3
    one_hot_gain = 4.0  # so that a component, of length 1, counts beside 54 coordinates, of length 7

    def __init__(self, data: Path, seed: int) -> None:
        seeded(seed)
        generator = MLPGenerator(components=10)
        with torch.no_grad():
            generator.layers[0].weight[:, :10] *= self.one_hot_gain
        self.config = {
            "family": "gan",
            "arch": "MLPGenerator",
            "config": dataclasses.asdict(generator.config),
            "sampling": {"truncation": 1.0},
        }
        super().__init__(data, seed, generator)
        self.card["Latent"] = (
            "64 normals; the largest of the first ten chooses one of ten components, which training tied to "
            "the ten labels. Sampling takes no label and rejects nothing"
        )

    def latents(self, label: Tensor) -> Tensor:
        """z ~ N(0, I), given that its component is `label`: two coordinates are exchanged."""
        z = super().latents(label)
        row, chosen = torch.arange(len(label)), choose(z, 10)
        z[row, chosen], z[row, label] = z[row, label], z[row, chosen]
        return z


RECIPES: tuple[Recipe, ...] = (
    Recipe("digits-gan", "class-conditional DCGAN of digits", DATA, DCGANTask),
    Recipe("digits-mlp-gan", "plain MLP GAN of digits, sampled without a class", DATA, MLPTask),
)
