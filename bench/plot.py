"""A roofline: what every case does, beside what the machine allows."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aigc_engine.zoo.files import replacing
from bench.measure import COPY_BYTES, Ceilings
from bench.record import Record, Row

SUFFIXES = (".png", ".svg", ".pdf")
READS_SHOWN = (2**15, 2**20, 2**24, 2**28)  # reach L1, L2, L3 and memory on most machines
MARKERS = {"float32": "o", "bfloat16": "s", "int8": "^"}
OTHER_MARKER = "D"
KEY_ROWS = 46  # the most in a column
GREY, RED = "#8a8a8a", "#b0413e"
BESIDE = 13  # pixels from a point to its number; from farther away a line leads to it
LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 3}


def refusal(path: Path | None) -> str | None:
    """Why no picture can be written there, or None; asked before minutes of timing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib isn't installed; pip install 'aigc_engine[bench]'"
    if path is not None and path.suffix not in SUFFIXES:
        return f"{str(path)!r} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}"
    return None


def roofline(record: Record, path: Path) -> Path:
    """Draws the rows that have both operations and bytes, and returns the path.

    Raises:
        ValueError: there is no such row.
    """
    from matplotlib.figure import Figure

    rows = [row for row in record.rows if row.gflops and row.gbps]
    if not rows:
        raise ValueError(f"bench: no case of {record.what} has both operations and bytes; nothing to plot")
    columns = math.ceil((len(rows) + len(families(rows))) / KEY_ROWS)
    figure = Figure(figsize=(10 + 3.9 * columns, 8.5), dpi=120, layout="constrained")
    axes, key = figure.subplots(1, 2, width_ratios=(10, 3.9 * columns))
    machine = record.machine
    threads, level = machine["native_threads"], machine["isa"]
    axes.set_title(f"{record.what} on {machine['cpu']}, {threads} threads, {level}")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    limits = record.ceilings
    low, high = (pick(intensity(row) for row in rows) for pick in (min, max))
    ridge = max(limits.compute.values()) / limits.read[COPY_BYTES[-1]]
    axes.set_xlim(low / 2, max(high, ridge) * 3)
    axes.set_ylim(min(row.gflops or math.inf for row in rows) / 2, max(limits.compute.values()) * 2)
    figure.draw_without_rendering()  # settles where the axes are, by which labels turn and find their places
    figure.set_layout_engine("none")
    _lines(axes, limits)
    colours = _colours(rows)
    for row in rows:
        axes.plot(
            intensity(row),
            row.gflops,
            MARKERS.get(_kind(row), OTHER_MARKER),
            color=colours[_op(row)],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    for kind in dict.fromkeys(map(_kind, rows)):
        axes.plot([], [], MARKERS.get(kind, OTHER_MARKER), color=GREY, label=kind)
    axes.legend(loc="lower right", fontsize=8)
    _numbers(axes, rows)
    _key(key, rows, colours, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))
    return path


def intensity(row: Row) -> float:
    """Operations per byte."""
    assert row.gflops and row.gbps
    return row.gflops / row.gbps


def families(rows: Iterable[Row]) -> list[str]:
    """Each once, in order; a row without one is its own."""
    return list(dict.fromkeys(row.family or row.name for row in rows))


def _op(row: Row) -> str:
    return (row.family or row.name).split("-")[0]


def _kind(row: Row) -> str:
    return row.family.rpartition("-")[2]


def _colours(rows: Sequence[Row]) -> dict[str, Any]:
    from matplotlib import colormaps

    names = list(dict.fromkeys(map(_op, rows)))
    shades = colormaps["tab10"].colors + colormaps["Dark2"].colors  # type: ignore[attr-defined]
    return {name: shades[i % len(shades)] for i, name in enumerate(names)}


def _lines(axes: Any, limits: Ceilings) -> None:
    """Compute ceilings are level; bandwidths rise, up to the highest of them."""
    left, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    top = max(limits.compute.values())
    for name, speed in limits.compute.items():
        axes.plot([left, right], [speed, speed], color=RED, linewidth=1, zorder=1)
        note = {"textcoords": "offset points", "ha": "right", "color": RED, "fontsize": 8}
        axes.annotate(f"{name} {speed:.0f}", (right, speed), (-4, 3), **note)
    biggest = COPY_BYTES[-1]
    rates = [(f"read {_size(size)}", limits.read[size], "-") for size in READS_SHOWN]
    rates.append((f"copy {_size(biggest)}", limits.copy[biggest], "--"))
    for name, rate, style in rates:
        start = max(left, bottom / rate)
        axes.plot([start, top / rate], [start * rate, top], style, color=GREY, linewidth=1, zorder=1)
        at = 0.85 * top
        (x, y), (x_end, y_end) = axes.transData.transform([(at / rate, at), (top / rate, top)])
        axes.text(
            at / rate,
            at,
            f"{name} {rate:.0f} GB/s",
            rotation=math.degrees(math.atan2(y_end - y, x_end - x)),
            rotation_mode="anchor",
            ha="right",
            va="bottom" if style == "-" else "top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            color=GREY,
            fontsize=8,
        )


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"


def _numbers(axes: Any, rows: Sequence[Row]) -> None:
    """Numbers beside the points, each at the nearest place where it covers neither point nor number."""
    points = [tuple(axes.transData.transform((intensity(row), row.gflops))) for row in rows]
    taken = [(x, y, 11.0, 11.0) for x, y in points]
    scale = 72 / axes.figure.dpi
    for number, (row, (x, y)) in enumerate(zip(rows, points, strict=True), start=1):
        width, height = 7.0 * len(str(number)) + 5, 13.0
        for radius, angle in ((r, a) for r in range(BESIDE, 200, 6) for a in range(0, 360, 30)):
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            box = (x + dx, y + dy, width, height)
            if not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            str(number),
            (intensity(row), row.gflops),
            (dx * scale, dy * scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            arrowprops=LEADER if radius > BESIDE else None,
        )


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Of boxes (centre x, centre y, width, height)."""
    return abs(a[0] - b[0]) * 2 < a[2] + b[2] and abs(a[1] - b[1]) * 2 < a[3] + b[3]


def _key(axes: Any, rows: Sequence[Row], colours: dict[str, Any], columns: int) -> None:
    """What the numbers stand for, family by family, with the share of the ceiling and the ratio."""
    length = math.ceil((len(rows) + len(families(rows))) / columns)
    axes.set(xlim=(0, columns), ylim=(max(length, 30), -1))
    axes.axis("off")
    place = 0

    def write(text: str, **style: Any) -> None:
        nonlocal place
        axes.text(place // length, place % length, text, fontsize=8, va="center", **style)
        place += 1

    for family in families(rows):
        write(family, color=colours[family.split("-")[0]], weight="bold")
        for number, row in enumerate(rows, start=1):
            if (row.family or row.name) == family:
                sample = row.name.removeprefix(f"{family}-")
                share = f"{row.percent:.0f} % of {row.bound}" if row.percent else ""
                write(f"{number:>3}  {sample}: {share}, {row.ratio:.2f}x")
