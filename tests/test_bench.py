"""The benchmarks' own arithmetic: ceilings, what bounds a case, peers, records and the roofline."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from aigc_engine import native
from aigc_engine.cli import bench as bench_command
from aigc_engine.dispatch import Op
from aigc_engine.testing import Sample, parity_failure, pieces, to_float64
from bench import __main__ as command
from bench import bench_ops, plot, record
from bench.case import Case, Mismatch, Work
from bench.measure import Ceilings, bound_of, loop_like
from tests.conftest import ALL_OPS

LIMITS = Ceilings(
    copy={2**17: 60.0, 2**28: 30.0},
    read={2**15: 600.0, 2**20: 300.0, 2**24: 100.0, 2**28: 40.0},
    compute={"fma_float32": 200.0, "dot_bfloat16": 400.0, "tile_bfloat16": 1600.0, "dot_int8": 800.0},
    matmul=180.0,
)
DATA = torch.ones(3000)


def nothing() -> float:
    return 0.0


def work(**job: Any) -> Work:
    return Work(nothing, nothing, nothing, **job)


@pytest.mark.parametrize("loop", native.CEILING_LOOPS)
def test_native_loops_count_what_they_do(loop: str, isa_level: str) -> None:
    with native.use_threads(1):
        one = native.ceiling(loop, 1, DATA)
        assert native.ceiling(loop, 7, DATA) == 7 * one
    if loop == "read":
        assert one == DATA.nbytes // 64 * 64
        return
    has = {"fma": True, "dot": isa_level in ("avx512_bf16", "amx"), "tile": isa_level == "amx"}
    assert (one > 0) == has[loop.split("_")[0]]
    with native.use_threads(3):
        assert native.ceiling(loop, 5) == 15 * one


def test_fastest_loop_of_a_dtype() -> None:
    assert LIMITS.loop(torch.bfloat16) == "tile_bfloat16"
    assert LIMITS.loop(torch.int8) == "dot_int8"
    for other in (torch.float32, torch.float16, torch.int64, None):
        assert LIMITS.loop(other) == "fma_float32"


@pytest.mark.parametrize(
    ("job", "bound"),
    [
        ({"bytes": 1e8}, "copy"),
        ({"bytes": 1e8, "reads": True}, "read"),
        ({"flops": 1e9}, None),
        ({"flops": 6e8, "bytes": 1e8}, "copy"),  # 3 ms of arithmetic, 3.3 ms of a copy
        ({"flops": 7e8, "bytes": 1e8}, "fma_float32"),
        ({"flops": 7e8, "bytes": 1e8, "arithmetic": torch.bfloat16}, "copy"),
        ({"flops": 7e9, "bytes": 1e8, "arithmetic": torch.bfloat16}, "tile_bfloat16"),
        ({"flops": 4e5, "bytes": 1e5}, "fma_float32"),  # caches copy faster
        ({"flops": 3e5, "bytes": 1e5}, "copy"),
    ],
)
def test_a_case_is_held_against_what_bounds_it(job: dict[str, Any], bound: str | None) -> None:
    assert bound_of(work(**job), LIMITS) == bound


def test_loop_like_does_as_much_work() -> None:
    assert loop_like(work(bytes=6400), "read")() == 6400
    done = loop_like(work(flops=1e7), "fma_float32")()
    assert abs(done - 1e7) < 0.01 * 1e7
    assert loop_like(work(bytes=8000), "copy")().nbytes == 4000


@pytest.mark.parametrize("op", [op for op in ALL_OPS if op.peer is not op.reference], ids=lambda op: op.name)
def test_peer_does_the_same(op: Op) -> None:
    for dtype in sorted(op.dtypes, key=str):
        for sample in op.samples(dtype, "cpu"):
            if sample.bench or rounds_each_step(op, dtype, sample):
                continue
            theirs = pieces(op.peer(*sample.args, **sample.kwargs))
            reference = pieces(op.reference(*sample.args, **sample.kwargs))
            truth = pieces(op.reference(*to_float64(sample.args), **to_float64(dict(sample.kwargs))))
            if sample.exact:
                torch.testing.assert_close(theirs, reference, rtol=0, atol=0, equal_nan=True)
                continue
            for each in zip(theirs, reference, truth, strict=True):
                assert parity_failure(*each, slack=op.slack) is None, f"{dtype} {sample.name}"


def rounds_each_step(op: Op, dtype: torch.dtype, sample: Sample) -> bool:
    """Whether PyTorch's way loses what the op's single rounding keeps."""
    if op.name != "pointwise" or dtype != torch.bfloat16:
        return False
    return len(sample.args[0]) > 1 or sample.kwargs.get("out_dtype") == torch.float32


def test_attention_is_timed_against_the_fused_op() -> None:
    attention = next(op for op in ALL_OPS if op.name == "attention")
    (case, *_) = bench_ops._cases_of(attention, torch.float32)
    assert case.against == "PyTorch scaled_dot_product_attention"
    assert case.family == "attention-float32"


def row(name: str, family: str, ratio: float, **changed: Any) -> record.Row:
    """A row that took 100 us."""
    facts: dict[str, Any] = {
        "group": "ops",
        "name": name,
        "family": family,
        "against": "PyTorch reference",
        "ours_us": 100.0,
        "theirs_us": 100.0 * ratio,
        "ratio": ratio,
        "paired_ratio": ratio,
        "target": None,
        "max_abs_error": 0.0,
        "rounds": 5,
        "calls": 1,
        "gflops": 50.0,
        "gbps": 25.0,
        "bound": "copy",
        "percent": 83.4,
        "ours_rate": None,
        "theirs_rate": None,
        "unit": "",
    }
    return record.Row(**facts | changed)


def record_of(*rows: record.Row) -> record.Record:
    machine = record.machine.describe()
    return record.Record("ops", "2020-02-20", machine, (0.1, 0.2), LIMITS, rows, ())


def test_record_has_ceilings_shares_and_geometric_means(tmp_path: Path) -> None:
    made = record_of(
        row("geglu-float32-a", "geglu-float32", 2.0),
        row("geglu-float32-b", "geglu-float32", 8.0, bound="fma_float32", percent=41.0),
        row("ddim", "", 3.0, gflops=None, bound=None, percent=None),
    )
    assert made.geomeans == {"geglu-float32": pytest.approx(4.0)}
    markdown = made.as_markdown()
    assert "| 50.0 | 25.0 | 83 % copy |" in markdown
    assert "41 % fma_float32" in markdown
    assert "| geglu-float32 | 4.00x |" in markdown
    assert "dot_bfloat16 400" in markdown and "256 MiB 40.0" in markdown
    paths = made.save(tmp_path)
    assert [path.name for path in paths] == ["2020-02-20-ops.json", "2020-02-20-ops.md"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    data = json.loads(paths[0].read_text())
    assert data["geomeans"] == made.geomeans
    assert data["ceilings"]["compute"] == LIMITS.compute


def test_a_record_of_some_cases_leaves_that_of_all_alone(tmp_path: Path) -> None:
    some = dataclasses.replace(record_of(row("geglu-float32-a", "", 2.0)), only=("geglu", "float32"))
    paths = some.save(tmp_path)
    assert [path.name for path in paths] == [
        f"2020-02-20-ops-geglu-float32.{kind}" for kind in ("json", "md")
    ]
    assert "bench ops --only geglu --only float32 --save" in paths[1].read_text()


def test_cases_are_timed_beside_their_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> float:
        raise Mismatch("b: differs; nothing was timed")

    x = torch.ones(1000)
    job = Work(lambda: x + 1, lambda: x + 1, nothing, flops=1e5, bytes=8e3)
    cases = [
        Case("ops", "a", "itself", lambda: job, seconds=0.0, family="add"),
        Case("ops", "b", "itself", lambda: Work(nothing, nothing, wrong)),
    ]
    monkeypatch.setattr(record, "ceilings", lambda: LIMITS)
    told: list[Any] = []
    made = record.run("ops", cases, report=lambda case, result: told.append(result))
    assert made.failures == ("b: differs; nothing was timed",)
    assert told == [*made.rows, *made.failures]
    (only,) = made.rows
    assert only.bound == "fma_float32" and only.family == "add"
    assert only.percent is not None and math.isfinite(only.percent) and only.percent > 0
    assert only.gflops == pytest.approx(1e5 / only.ours_us / 1e3)


def test_an_interrupted_run_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    cases = [
        Case("ops", "a", "itself", lambda: Work(nothing, nothing, nothing), seconds=0.0),
        Case("ops", "b", "itself", lambda: Work(nothing, nothing, interrupted)),
        Case("ops", "c", "itself", lambda: pytest.fail("went on")),
    ]
    monkeypatch.setattr(record, "ceilings", lambda: LIMITS)
    made = record.run("ops", cases, report=lambda case, result: None)
    assert [row.name for row in made.rows] == ["a"] and made.failures == ("interrupted at b",)


def test_words_of_several_options_add_up() -> None:
    options = command._parser().parse_args(["ops", "--only", "linear", "float32", "--only", "llama"])
    assert options.only == ["linear", "float32", "llama"]


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_roofline_is_written_whole(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    rows = [
        row(f"linear-{kind}-{i}", f"linear-{kind}", 1.5, gflops=9.0 + i, gbps=1.0 + i % 3)
        for kind in ("float32", "bfloat16", "int8")
        for i in range(25)
    ]
    path = plot.roofline(record_of(*rows), tmp_path / "deep" / f"roof{suffix}")
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])
    assert [file.name for file in path.parent.iterdir()] == [f"roof{suffix}"]


def test_roofline_needs_operations_and_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    with pytest.raises(ValueError, match="no case of ops has both operations and bytes"):
        plot.roofline(record_of(row("ddim", "", 3.0, gflops=None)), tmp_path / "roof.png")
    assert list(tmp_path.iterdir()) == []


def test_plot_is_refused_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run", lambda *args, **kwargs: pytest.fail("it was timed"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert command.main(["step", "--plot", "roof.txt"]) == 2
    assert "'roof.txt' ends in '.txt', expected one of .png" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main(["step", "--plot"]) == 2
    assert "matplotlib isn't installed; pip install 'aigc_engine[bench]'" in capsys.readouterr().out


def test_command_line_hands_the_picture_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[list[str]] = []

    def ran(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        given.append(arguments[3:])
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.chdir(tmp_path)
    assert bench_command.run("ops", ["glu"], plot=True, save=True) == 0
    assert bench_command.run("ops", [], out=Path("roof.png")) == 0
    assert given == [["ops", "--save", "--plot", "--only", "glu"], ["ops", f"--plot={tmp_path / 'roof.png'}"]]
