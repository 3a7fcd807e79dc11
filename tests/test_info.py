"""`python -m aigc_engine.info`: complete, and the same story as the dispatch tells."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from aigc_engine import capability, info, native, ops
from aigc_engine.dispatch import REFERENCE
from tests.conftest import ALL_OPS


def printed(width: int = 200) -> str:
    stream = io.StringIO()
    info.main(Console(file=stream, width=width))
    return stream.getvalue()


def test_a_row_for_every_op_and_backend() -> None:
    rows = [(row.op, row.backend) for row in info.services()]
    assert sorted(rows) == sorted((op.name, backend) for op in ALL_OPS for backend in op.backends())
    for op in ALL_OPS:
        assert [backend for name, backend in rows if name == op.name] == op.backends()


def test_rows_agree_with_the_dispatch() -> None:
    x = torch.ones(2, 3)
    verdicts = {verdict.backend: verdict for verdict in ops.bias_act.explain(x).verdicts}
    rows = {row.backend: row for row in info.services() if row.op == "bias_act"}
    assert rows.keys() == verdicts.keys()
    for backend, row in rows.items():
        assert row.cpu == ("; ".join(verdicts[backend].reasons) or info.SERVES)
    assert rows["native"].scope == "bfloat16, float32"
    assert "device cuda, serves ['cpu']" in rows["native"].cuda


def test_machine_facts() -> None:
    facts = info.machine()
    assert capability.cpu_name() in facts["CPU"]
    assert f"{native.isa()} (chosen" in facts["ISA levels"]
    for name, _, _ in native.isa_levels():
        assert name in facts["ISA levels"]
    assert f"native {native.threads()}" in facts["threads"]
    assert torch.__version__ in facts["torch"]
    assert facts["CPUs"].startswith(str(len(capability.cpus())))
    if not torch.cuda.is_available():
        assert facts["CUDA"].startswith("no device")


def test_caches_without_a_size_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, (kind, size) in enumerate([("Data", "64K"), ("Unified", None)]):
        cache = tmp_path / f"index{index}"
        cache.mkdir()
        for name, value in (("level", str(index + 1)), ("type", kind), ("size", size)):
            if value:
                (cache / name).write_text(value + "\n")
    monkeypatch.setattr(capability, "CACHES", tmp_path)
    assert capability.caches.__wrapped__() == {"L1d": "64K"}


def test_chosen_level_follows_force_isa() -> None:
    with native.force_isa("portable"):
        assert "portable (chosen" in info.machine()["ISA levels"]


def test_reasons_are_shown_where_the_native_module_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "the native module doesn't load (no such file); reinstall aigc_engine"
    monkeypatch.setattr(capability, "native_missing", lambda: missing)
    monkeypatch.setitem(capability.MISSING, "native", lambda: missing)
    facts = info.machine()
    assert facts["native"] == missing
    assert facts["ISA levels"] == "none"
    rows = {row.backend: row for row in info.services() if row.op == "bias_act"}
    assert rows["native"].cpu == missing
    assert rows[REFERENCE].cpu == info.SERVES


def test_the_package_works_without_the_native_module() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["aigc_engine._native"] = None
import torch, aigc_engine
print(aigc_engine.sample(lambda x, t, cond: x / 2, (2, 3), steps=2).isfinite().all())
try:
    aigc_engine.accelerate(torch.nn.Linear(2, 2).eval())
except aigc_engine.UnsupportedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensor(True)\naccelerate: the native module doesn't load" in done.stdout
    assert "CPU calls run on the PyTorch reference" in done.stderr


def test_tables_print_everything() -> None:
    text = printed()
    for name in [*info.machine(), *(op.name for op in ALL_OPS), *info.machine().values()]:
        assert name in text, name
    assert printed(80)


def test_runs_of_cpus() -> None:
    assert info._runs([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert info._runs([3]) == "3"


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aigc_engine.info"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "linear_update" in done.stdout
    assert native.isa() in done.stdout
