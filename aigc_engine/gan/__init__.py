"""Samplers of generative adversarial networks."""

from aigc_engine.gan.fold import fold
from aigc_engine.gan.sample import GanSampler

__all__ = ["GanSampler", "fold"]
