"""All recipes by name. A new module of recipes adds its tuple here."""

from __future__ import annotations

from aigc_engine.train import digits, gan, text
from aigc_engine.train.task import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*digits.RECIPES, *gan.RECIPES, *text.RECIPES)
}
