"""`aigc-engine train`."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from aigc_engine.cli import console


def run(
    name: str | None, data: Path | None, out: Path | None, *, resume: bool, threads: int | None, seed: int
) -> None:
    """Trains a recipe, or lists them all when no name is given.

    Raises:
        ValueError: unknown recipe, no data, or what the recipe itself refuses.
    """
    from aigc_engine.train.loop import run as train
    from aigc_engine.train.recipe import RECIPES

    if name is None:
        table = Table("recipe", "what", "--data", title="Recipes", title_justify="left")
        for recipe in RECIPES.values():
            table.add_row(recipe.name, recipe.description, console.escape(recipe.data))
        console.out.print(table)
        return
    if name not in RECIPES:
        raise ValueError(
            f"train: recipe {name!r}, expected one of {sorted(RECIPES)}; `aigc-engine train` lists them"
        )
    recipe = RECIPES[name]
    if data is None:
        raise ValueError(f"train: no --data, expected {recipe.data}; give its path")
    folder = out or Path("runs") / name
    result = train(recipe.make_task(data, seed), folder, resume=resume, threads=threads)
    console.errors.print(console.escape(result.message), soft_wrap=True)
    if not result.finished:
        raise typer.Exit(130)
