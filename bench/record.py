"""From cases to rows, and from rows to a record: one JSON file and the same as a markdown table."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aigc_engine.zoo.files import replacing
from bench import machine
from bench.case import Case, Mismatch
from bench.measure import Ceilings, bound_of, ceilings, loop_like, paired

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured case; times in us, rates per s, `percent` of the speed of `bound`'s loop on as much."""

    group: str
    name: str
    family: str
    against: str
    ours_us: float
    theirs_us: float
    ratio: float
    paired_ratio: float
    target: float | None
    max_abs_error: float
    rounds: int
    calls: int
    gflops: float | None
    gbps: float | None
    bound: str | None
    percent: float | None
    ours_rate: float | None
    theirs_rate: float | None
    unit: str

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target


def measure(case: Case, limits: Ceilings) -> Row:
    """Builds, verifies and then times one case, beside the loop that bounds it.

    Raises:
        Mismatch: both sides don't do the same job.
    """
    with torch.no_grad():
        work = case.build()
        error = work.verify()
        bound = bound_of(work, limits)
        ceiling = loop_like(work, bound) if bound else None
        timing = paired(work.ours, work.theirs, ceiling=ceiling, seconds=case.seconds)
    ours = timing.our_median
    share = timing.share_of_ceiling
    return Row(
        group=case.group,
        name=case.name,
        family=case.family,
        against=case.against,
        ours_us=timing.our_median * 1e6,
        theirs_us=timing.their_median * 1e6,
        ratio=timing.ratio,
        paired_ratio=timing.paired_ratio,
        target=case.target,
        max_abs_error=error,
        rounds=len(timing.ours),
        calls=timing.calls,
        gflops=work.flops / ours / 1e9 if work.flops else None,
        gbps=work.bytes / ours / 1e9 if work.bytes else None,
        bound=bound,
        percent=share * 100 if share else None,
        ours_rate=work.items / ours if work.items else None,
        theirs_rate=work.items / timing.their_median if work.items else None,
        unit=work.unit,
    )


@dataclass(frozen=True)
class Record:
    """All rows of a run, with the machine and the ceilings they were measured beside."""

    what: str
    date: str
    machine: dict[str, Any]
    load: tuple[float, float]
    ceilings: Ceilings
    rows: tuple[Row, ...]
    failures: tuple[str, ...]
    only: tuple[str, ...] = ()  # words that all names have, where the record isn't of all cases

    @property
    def geomeans(self) -> dict[str, float]:
        """Of the ratios of each family, in the order of the rows."""
        ratios: dict[str, list[float]] = {}
        for row in self.rows:
            if row.family:
                ratios.setdefault(row.family, []).append(row.ratio)
        return {family: statistics.geometric_mean(found) for family, found in ratios.items()}

    def save(self, folder: Path = RESULTS) -> list[Path]:
        """Writes <date>-<what>[-<words>].json and .md, and returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for suffix, text in ((".json", self.as_json()), (".md", self.as_markdown())):
            path = self.path(suffix, folder)
            with replacing(path) as temporary:
                temporary.write_text(text)
            paths.append(path)
        return paths

    def path(self, suffix: str, folder: Path = RESULTS) -> Path:
        return folder / f"{'-'.join((self.date, self.what, *self.only))}{suffix}"

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "geomeans": self.geomeans}, indent=1) + "\n"

    def as_markdown(self) -> str:
        m, (before, after) = self.machine, self.load
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        limits, only = self.ceilings, "".join(f" --only {word}" for word in self.only)
        loops = ", ".join(f"{name} {speed:.0f}" for name, speed in limits.compute.items())
        lines = [
            f"# {' '.join((self.what, *self.only))}, {self.date}",
            "",
            f"- {m['cpu']} ({m['arch']}), {m['cpus']} CPUs; native ISA {m['isa']}, torch {m['torch_isa']}",
            f"- threads: native {m['native_threads']}, torch {m['torch_threads']}; load {before} to {after}",
            f"- {versions}, Python {m['python']}, commit {m['commit']}",
            f"- ceilings in this run, GFLOP/s: {loops}; torch's float32 matmul {limits.matmul:.0f}",
            f"- GB/s of a copy: {_by_size(limits.copy)}",
            f"- GB/s of reading: {_by_size(limits.read)}",
            f"- reproduce: `aigc-engine bench {self.what}{only} --save`",
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "|---|---|" + "---:|" * (len(HEADINGS) - 2),
            *("| " + " | ".join(cells(row)) + " |" for row in self.rows),
        ]
        if self.geomeans:
            lines += ["", "Geometric means of the ratios:", "", "| family | ratio |", "|---|---:|"]
            lines += [f"| {family} | {ratio:.2f}x |" for family, ratio in self.geomeans.items()]
        if self.failures:
            lines += ["", "Not timed:", "", *(f"- {failure}" for failure in self.failures)]
        return "\n".join(lines) + "\n"


HEADINGS = (
    "case",
    "against",
    "ours",
    "theirs",
    "ratio",
    "paired",
    "target",
    "GFLOP/s",
    "GB/s",
    "of ceiling",
    "max abs error",
)


def cells(row: Row) -> list[str]:
    """A row as text, in the order of `HEADINGS`."""
    target = "" if row.target is None else f">= {row.target:g} {'met' if row.met else 'missed'}"
    return [
        row.name,
        row.against,
        _side(row.ours_us, row.ours_rate, row.unit),
        _side(row.theirs_us, row.theirs_rate, row.unit),
        f"{row.ratio:.2f}x",
        f"{row.paired_ratio:.2f}x",
        target,
        "" if row.gflops is None else f"{row.gflops:.1f}",
        "" if row.gbps is None else f"{row.gbps:.1f}",
        "" if row.percent is None else f"{row.percent:.0f} % {row.bound}",
        f"{row.max_abs_error:.1e}" if row.max_abs_error else "0",
    ]


def _by_size(rates: Mapping[int, float]) -> str:
    return ", ".join(f"{size / 2**20:g} MiB {rate:.1f}" for size, rate in rates.items())


def _side(microseconds: float, rate: float | None, unit: str) -> str:
    time = next(
        f"{microseconds / scale:.3g} {name}"
        for scale, name in ((1e6, "s"), (1e3, "ms"), (1.0, "us"))
        if microseconds >= scale or scale == 1.0
    )
    return time if rate is None else f"{time} ({rate:.3g} {unit}/s)"


def run(
    what: str, cases: Iterable[Case], *, report: Callable[[Case, Row | str], None], only: Sequence[str] = ()
) -> Record:
    """Measures cases one after another, those with the words `only`; `report` is told of each as it's done.

    A case whose sides don't agree is reported and isn't timed; the others go on. Ctrl-C ends the measuring,
    and the record has what was measured until then.
    """
    before, limits = machine.load(), ceilings()
    rows: list[Row] = []
    failures: list[str] = []
    for case in cases:
        try:
            row = measure(case, limits)
        except Mismatch as error:
            failures.append(str(error))
            report(case, str(error))
            continue
        except KeyboardInterrupt:
            failures.append(f"interrupted at {case.name}")
            report(case, failures[-1])
            break
        rows.append(row)
        report(case, row)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017 (Python 3.10)
    load = before, machine.load()
    return Record(
        what, date, machine.describe(), load, limits, tuple(rows), tuple(failures), only=tuple(only)
    )


def find(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    """The cases whose name contains every word."""
    return [case for case in cases if all(word in case.name for word in words)]
