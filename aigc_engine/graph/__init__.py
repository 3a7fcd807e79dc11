"""Whole networks as native plans: capture, fuse, lower, run."""

from aigc_engine.graph.accelerated import Accelerated
from aigc_engine.graph.entry import accelerate
from aigc_engine.graph.pipeline import AcceleratedPipeline

__all__ = ["Accelerated", "AcceleratedPipeline", "accelerate"]
