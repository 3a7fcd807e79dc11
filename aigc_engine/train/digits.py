"""Recipes on digits: the classifier, the diffusion model and the VAE."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine.models.classifier import Classifier
from aigc_engine.models.unet import UNet
from aigc_engine.models.vae import VAE
from aigc_engine.train.data import Digits, batch_indices, load_digits
from aigc_engine.train.task import Recipe

DATA = "an npz file with `images` uint8 (n, 28, 28) and `labels` (n,), for example 10,000 MNIST digits"
CARD = {
    "Data": "10,000 digits of MNIST (LeCun, Cortes, Burges), 1,000 of them held out",
    "Licence of the data": "CC BY-SA 3.0",
    "Licence of the weights": "MIT, as the package",
}


def warmup_stable_decay(step: int, total: int, peak: float, decay: float, warmup: int = 100) -> float:
    """Learning rate of a step: up to `peak` over `warmup` steps, down to 0 over the last share `decay`."""
    return peak * min(1.0, (step + 1) / warmup, (total - step) / (decay * total))


class DigitsTask:
    """What the three recipes share: data, one AdamW, and a bfloat16 step with warm-up and decay."""

    recipe: str
    total_steps: int
    batch: int
    peak: float
    ema: float
    decay = 0.25
    weight_decay = 0.0
    storage = torch.float16
    config: dict[str, Any]

    def __init__(self, data: Path, seed: int, model: nn.Module) -> None:
        self.seed = seed
        self.digits, self.held_out = load_digits(data)
        self.exported = model
        self.models: dict[str, nn.Module] = {"model": model}
        adam = torch.optim.AdamW(
            model.parameters(), lr=self.peak, betas=(0.9, 0.99), weight_decay=self.weight_decay, fused=True
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": adam}
        self.card = {**CARD, "Training": f"{self.total_steps} steps of {self.batch} digits, AdamW, bfloat16"}

    def batch_of(self, step: int) -> Digits:
        """The digits of a step."""
        index = batch_indices(len(self.digits.labels), self.batch, self.seed, step)
        return Digits(self.digits.images[index], self.digits.labels[index])

    def loss(self, batch: Digits) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what else the progress bar shows."""
        raise NotImplementedError

    def train_step(self, step: int) -> dict[str, float]:
        optimizer = self.optimizers["model"]
        for group in optimizer.param_groups:
            group["lr"] = warmup_stable_decay(step, self.total_steps, self.peak, self.decay)
        with torch.autocast("cpu", torch.bfloat16):
            loss, shown = self.loss(self.batch_of(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.exported.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item(), **{name: value.item() for name, value in shown.items()}}


def seeded(seed: int) -> None:
    """Make the initial weights a function of the seed."""
    torch.manual_seed(seed)


def random_affine(images: Tensor) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 10 %, shift by up to 2 pixels: one draw per image."""
    u = torch.rand(4, len(images)) * 2.0 - 1.0
    angle, scale, shift = u[0] * (math.pi / 18), 1.0 + 0.1 * u[1], u[2:] * (4.0 / 28)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1.0, grid, align_corners=False) - 1.0


class ClassifierTask(DigitsTask):
    recipe, total_steps, batch, peak, ema = "digits-classifier", 1500, 64, 2e-3, 0.995
    weight_decay = 1e-2

    def __init__(self, data: Path, seed: int) -> None:
        seeded(seed)
        model = Classifier()
        self.config = {
            "family": "classifier",
            "arch": "Classifier",
            "config": dataclasses.asdict(model.config),
        }
        super().__init__(data, seed, model)

    def loss(self, batch: Digits) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.exported(random_affine(batch.images))
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.02), {"accuracy": accuracy}

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, str]:
        right = (model(self.held_out.images).argmax(1) == self.held_out.labels).float().mean().item()
        return {"accuracy on the 1,000 held-out digits": f"{right:.2%}"}


def cosine_alpha_bar(timesteps: int) -> Tensor:
    """alpha_bar (T,) float64, about cos^2((t / T + 0.008) / 1.008 pi / 2), with every beta below 0.999.

    References:
        Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
        https://arxiv.org/abs/2102.09672
    """
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    ideal = torch.cos((t + 0.008) / 1.008 * (math.pi / 2)).square()
    betas = (1.0 - ideal[1:] / ideal[:-1]).clamp(max=0.999)
    return torch.cumprod(1.0 - betas, dim=0)


class DiffusionTask(DigitsTask):
    """v-prediction: v = alpha_t eps - sigma_t x_0 on x_t = alpha_t x_0 + sigma_t eps, all t weighted alike.

    References:
        Salimans, Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
        https://arxiv.org/abs/2202.00512
        Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598
    """

    recipe, total_steps, batch, peak, ema = "digits-diffusion", 5500, 64, 2e-3, 0.998
    decay = 0.1
    timesteps = 1000
    label_dropout = 0.1

    def __init__(self, data: Path, seed: int) -> None:
        seeded(seed)
        model = UNet()
        self.config = {
            "family": "diffusion",
            "arch": "UNet",
            "config": dataclasses.asdict(model.config),
            "schedule": {"name": "cosine", "timesteps": self.timesteps},
            "prediction": "v",
            "sampling": {"solver": "ddim", "steps": 50, "guidance": 1.5, "spacing": "trailing"},
        }
        super().__init__(data, seed, model)
        alpha_bar = cosine_alpha_bar(self.timesteps)
        self.alpha, self.sigma = alpha_bar.sqrt().float(), (1.0 - alpha_bar).sqrt().float()

    def velocity_error(self, model: nn.Module, digits: Digits, labels: Tensor) -> Tensor:
        """Mean square error of v; the timesteps are stratified, one in each of B equal parts of the range."""
        rows = len(digits.labels)
        u = (torch.arange(rows) + torch.rand(rows)) / rows
        t = (u * self.timesteps).long().clamp(max=self.timesteps - 1)
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(digits.images)
        v = alpha * noise - sigma * digits.images
        return (model(alpha * digits.images + sigma * noise, t.float(), labels).float() - v).square().mean()

    def loss(self, batch: Digits) -> tuple[Tensor, dict[str, Tensor]]:
        dropped = torch.rand(len(batch.labels)) < self.label_dropout
        labels = torch.where(dropped, self.exported.null_label, batch.labels)
        return self.velocity_error(self.exported, batch, labels), {}

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, str]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            error = self.velocity_error(model, self.held_out, self.held_out.labels).item()
        return {"mean square error of v on the 1,000 held-out digits": f"{error:.4f}"}


class VAETask(DigitsTask):
    """Evidence lower bound in nats: pixel cross-entropy plus `beta` times the KL to N(0, I)."""

    recipe, total_steps, batch, peak, ema = "digits-vae", 4000, 64, 2e-3, 0.995
    beta = 0.7

    def __init__(self, data: Path, seed: int) -> None:
        seeded(seed)
        model = VAE()
        self.config = {
            "family": "vae",
            "arch": "VAE",
            "config": dataclasses.asdict(model.config),
            "sampling": {"truncation": 0.8},
        }
        super().__init__(data, seed, model)

    @staticmethod
    def bound(model: VAE, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL, in nats per image."""
        mean, logvar = (part.float() for part in model.encode(images))
        logits = model.logits(mean + torch.exp(0.5 * logvar) * noise).float()
        brightness = 0.5 * images + 0.5
        entropy = F.binary_cross_entropy_with_logits(logits, brightness, reduction="sum")
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum()
        return entropy / len(images), divergence / len(images)

    def loss(self, batch: Digits) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(len(batch.labels), self.exported.latent)
        entropy, divergence = self.bound(self.exported, batch.images, noise)
        return entropy + self.beta * divergence, {"entropy": entropy, "kl": divergence}

    @torch.no_grad()
    def measure(self, model: VAE) -> dict[str, str]:
        """Fit the classes in the latent space, then measure."""
        means = torch.cat([model.encode(part)[0] for part in self.digits.images.split(500)])
        model.fit_classes(means, self.digits.labels)
        images = self.held_out.images
        error = (model(images) - images).square().mean().item()
        return {"mean square error of reconstructed held-out digits, in [-1, 1]": f"{error:.4f}"}


RECIPES: tuple[Recipe, ...] = (
    Recipe("digits-classifier", "classifier of digits, the ruler of evaluate", DATA, ClassifierTask),
    Recipe("digits-diffusion", "class-conditional diffusion model of digits", DATA, DiffusionTask),
    Recipe("digits-vae", "variational autoencoder of digits", DATA, VAETask),
)
