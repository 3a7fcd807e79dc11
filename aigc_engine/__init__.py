"""Fast sampling from generative models: diffusion, GAN, VAE, autoregressive text."""

from aigc_engine import ops, zoo
from aigc_engine.dispatch import UnsupportedError, explain, use_backend
from aigc_engine.gan import GanSampler
from aigc_engine.load import Sampler, load
from aigc_engine.vae import VaeSampler

__version__ = "0.1.0"
__all__ = [
    "GanSampler",
    "Sampler",
    "UnsupportedError",
    "VaeSampler",
    "__version__",
    "explain",
    "load",
    "ops",
    "use_backend",
    "zoo",
]
