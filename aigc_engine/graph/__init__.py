"""Whole networks as native plans: capture, fuse, lower, run."""

from aigc_engine.graph.accelerate import Accelerated, accelerate

__all__ = ["Accelerated", "accelerate"]
