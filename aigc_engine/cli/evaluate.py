"""`aigc-engine evaluate`: the measured numbers, each as soon as it's there, and whether its target is met."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from aigc_engine.cli import console
from aigc_engine.evaluate.run import Row, evaluate

MARKS = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}


def run(names: Sequence[str] | None, n: int, seed: int) -> int:
    """Measures and prints; returns 1 if a target is missed, else 0."""
    with console.errors.status("measuring ...") as status:

        def told(row: Row) -> None:
            status.update(f"measured {row.model}: {row.metric} {row.shown}")

        rows = evaluate(names, samples=n, seed=seed, on_row=told)
    table = Table("model", "measured", "value", "target", "", "beside it")
    for row in rows:
        table.add_row(row.model, row.metric, row.shown, row.target, MARKS[row.ok], row.note)
    console.out.print(table)
    return 1 if any(row.ok is False for row in rows) else 0
