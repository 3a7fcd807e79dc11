"""The kernels on a machine that isn't here: every source compiles for 64-bit ARM, without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
SOURCES = [*KERNELS, *sorted((ROOT / "csrc" / "runtime").glob("*.cpp"))]
# CMakeLists.txt: the level that only adds matrix instructions compiles the tiled kernels.
TILED = re.search(r"set\(TILED_KERNELS ([^)]+)\)", (ROOT / "CMakeLists.txt").read_text())
EMULATED = [ROOT / path for path in TILED[1].split()] if TILED else []
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="ziglang, a cross compiler, isn't installed"
)
FLAGS = ["-std=gnu++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi"]


def compile_for_arm(source: Path, folder: Path, *defines: str) -> None:
    target = ["-target", "aarch64-linux-gnu", f"-I{ROOT / 'csrc'}", *(f"-D{define}" for define in defines)]
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "c++", *target, *FLAGS, "-c", str(source), "-o", "object.o"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_portable_level(source: Path, tmp_path: Path) -> None:
    compile_for_arm(source, tmp_path, "AIGC_ISA=portable")


@pytest.mark.parametrize("source", EMULATED, ids=lambda source: source.stem)
def test_emulated_tiles(source: Path, tmp_path: Path) -> None:
    compile_for_arm(source, tmp_path, "AIGC_ISA=amx_emulated", "AIGC_PLAIN=portable", "AIGC_EMULATE_TILES")
