"""Fast sampling from generative models: diffusion, GAN, VAE, autoregressive text."""

from aigc_engine import ops
from aigc_engine.dispatch import UnsupportedError, explain, use_backend

__version__ = "0.1.0"
__all__ = ["UnsupportedError", "__version__", "explain", "ops", "use_backend"]
