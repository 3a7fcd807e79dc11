"""Recipes on digits."""

from __future__ import annotations

from aigc_engine.train.task import Recipe

RECIPES: tuple[Recipe, ...] = ()
