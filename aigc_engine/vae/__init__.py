"""Samplers of variational autoencoders."""

from aigc_engine.vae.sample import VaeSampler

__all__ = ["VaeSampler"]
