"""Fast sampling from generative models: diffusion, GAN, VAE, autoregressive text."""

from aigc_engine import native, ops, zoo
from aigc_engine.autoregressive import TextSampler
from aigc_engine.diffusion import Cancelled, DiffusionSampler, sample
from aigc_engine.dispatch import UnsupportedError, explain, use_backend
from aigc_engine.gan import GanSampler
from aigc_engine.graph import accelerate
from aigc_engine.load import Sampler, load
from aigc_engine.vae import VaeSampler

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "DiffusionSampler",
    "GanSampler",
    "Sampler",
    "TextSampler",
    "UnsupportedError",
    "VaeSampler",
    "__version__",
    "accelerate",
    "explain",
    "load",
    "native",
    "ops",
    "sample",
    "use_backend",
    "zoo",
]
