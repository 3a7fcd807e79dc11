"""Autoregressive models: sampling text."""

from aigc_engine.autoregressive.sample import TextSampler

__all__ = ["TextSampler"]
