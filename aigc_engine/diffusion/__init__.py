"""Sampling from diffusion and flow models: schedules, solvers as tables, one loop."""

from __future__ import annotations

from aigc_engine.diffusion.control import Cancelled, Progress
from aigc_engine.diffusion.sample import DiffusionSampler, sample
from aigc_engine.diffusion.schedule import EDM, VP, Flow
from aigc_engine.diffusion.solver import SOLVERS, Recipe, UpdateTable, update_table
from aigc_engine.diffusion.spacing import Spacing

__all__ = [
    "EDM",
    "SOLVERS",
    "VP",
    "Cancelled",
    "DiffusionSampler",
    "Flow",
    "Progress",
    "Recipe",
    "Spacing",
    "UpdateTable",
    "sample",
    "update_table",
]
