"""Every Triton kernel compiles to a cubin for sm_80 and sm_90 as its launcher launches it, without spills."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aigc_engine.registry import LINES
from tests.compile_kernels import CASES

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton isn't installed"),
    pytest.mark.timeout(900),  # the first test waits for the compilers
]
ROOT = Path(__file__).resolve().parent.parent
SHARED_LIMIT = {
    80: 163 * 1024,
    90: 227 * 1024,
}  # CUDA C++ Programming Guide, table of technical specifications
NUMBERS = ("warps", "registers", "spilled", "shared")


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Kernels per (arch, case), compiled by one process per arch; Triton's cache makes later runs quick."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    processes = {
        arch: subprocess.Popen(
            [sys.executable, "-m", "tests.compile_kernels", str(arch)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arch in SHARED_LIMIT
    }
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for arch, process in processes.items():
        output, errors = process.communicate()
        assert process.returncode == 0, f"sm_{arch}: {errors[-4000:]}"
        for line in output.splitlines():
            kernel = json.loads(line)
            found.setdefault((arch, kernel["case"]), []).append(kernel)
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        show(found)
    return found


def show(found: dict[tuple[int, str], list[dict[str, Any]]]) -> None:
    """Prints the table of what the kernels take."""
    print(f"\n{'':7}{'case':30}{'kernel':22}" + "".join(f"{name:>11}" for name in NUMBERS))
    for (arch, case), kernels in sorted(found.items()):
        for kernel in kernels:
            cells = "".join(f"{kernel[name]:>11}" for name in NUMBERS)
            print(f"sm_{arch:<4}{case:30}{kernel['kernel']:22}{cells}")


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(
    compiled: dict[tuple[int, str], list[dict[str, Any]]], arch: int, case: str
) -> None:
    kernels = compiled[arch, case]
    assert kernels, "nothing was launched"
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT[arch], kernel
        assert 0 < kernel["registers"] <= 255


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_linear_update_rounds_every_operation(
    compiled: dict[tuple[int, str], list[dict[str, Any]]], arch: int
) -> None:
    """Its bits are the reference's on a GPU only if nothing is contracted, flushed or approximated."""
    names = [case for case, (op, _) in CASES.items() if op == "linear_update"]
    assert {name: kernel["inexact"] for name in names for kernel in compiled[arch, name]} == {
        name: [] for name in names
    }


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_attention_loads_whole_vectors(
    compiled: dict[tuple[int, str], list[dict[str, Any]]], arch: int
) -> None:
    """Heads of 40 too: 16 bytes a load; the loads of k and v aren't pipelined otherwise."""
    names = [case for case, (op, _) in CASES.items() if op == "attention" and "self" in case]
    assert names
    for name in names:
        assert [kernel["narrow_loads"] for kernel in compiled[arch, name]] == [0], name


def test_every_kernel_is_compiled() -> None:
    assert {op for op, _ in CASES.values()} == {line.op for line in LINES if line.backend == "triton"}
