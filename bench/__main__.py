"""`python -m bench [GROUP] [--only WORDS] [--save] [--plot]`: measures, prints and records."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from aigc_engine import native
from bench.case import Case
from bench.groups import GROUPS, cases_of
from bench.plot import refusal, roofline
from bench.record import HEADINGS, RESULTS, Record, Row, cells, find, run

NOT_SHOWN = ("paired", "max abs error", "against")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 when two sides disagreed or Ctrl-C ended it; 2 when nothing was done."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if options.threads:
        torch.set_num_threads(options.threads)
    picture = Path(options.plot) if options.plot else None
    if options.plot is not None and (reason := refusal(picture)):
        console.print(f"bench: --plot: {reason}", soft_wrap=True, markup=False)
        return 2
    chosen = find(cases_of(options.group), options.only)
    if options.list:
        for case in chosen:
            console.print(f"{case.group:10} {case.name}", highlight=False)
        return 0
    if not chosen:
        console.print(f"bench: no case of {options.group} has {options.only} in its name; --list shows them")
        return 2
    console.print(f"{len(chosen)} cases, {torch.get_num_threads()} torch threads, native ISA {native.isa()}")

    def report(case: Case, result: Row | str) -> None:
        if isinstance(result, str):
            console.print(f"[red]{result}[/red]")
        else:
            console.print(f"{case.group} {case.name}: {result.ratio:.2f}x {case.against}", highlight=False)

    record = run(options.group, chosen, report=report, only=options.only)
    console.print(_table(options.group, record))
    for family, ratio in record.geomeans.items():
        console.print(f"{family}: geometric mean {ratio:.2f}x", highlight=False)
    if options.save:
        for path in record.save():
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if options.plot is not None:
        try:
            path = roofline(record, picture or record.path(".png"))
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        except ValueError as error:
            console.print(str(error), soft_wrap=True, markup=False)
            return 2
    return 1 if record.failures else 0


def _table(group: str, record: Record) -> Table:
    table = Table(title=f"{group}: load {record.load[0]} before, {record.load[1]} after")
    for heading in HEADINGS:
        if heading not in NOT_SHOWN:
            table.add_column(heading, overflow="fold")
    for row in record.rows:
        shown = [cell for heading, cell in zip(HEADINGS, cells(row), strict=True) if heading not in NOT_SHOWN]
        table.add_row(*shown, style="red" if row.met is False else ("green" if row.met else None))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Paired benchmarks with their baselines.")
    parser.add_argument("group", nargs="?", default="all", choices=[*GROUPS, "all"], help="which benchmarks")
    parser.add_argument(
        "--only", nargs="*", action="extend", default=[], metavar="WORD", help="words that the name must have"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--threads", type=int, help="torch and native threads")
    parser.add_argument("--save", action="store_true", help=f"write a record to {RESULTS.name}/")
    parser.add_argument(
        "--plot",
        nargs="?",
        const="",
        metavar="FILE",
        help=f"draw a roofline of the cases; default {RESULTS.name}/<date>-<group>.png",
    )
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
