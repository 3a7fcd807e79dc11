"""The wheel: complete, without torch inside, and usable where there's no compiler and no source checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from aigc_engine import native

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS = 1200  # where the CMake tree can't be reused, the wheel compiles every level anew
pytestmark = pytest.mark.timeout(BUILD_SECONDS + 60)
TORCH_SYMBOLS = re.compile(rb"libtorch|libc10|_ZN2at|_ZN3c10|_ZN5torch")
PROBE = """
import importlib.util, json
import aigc_engine
from aigc_engine import native, zoo
images = aigc_engine.load("digits-gan").sample(n=2, seed=0)
print(json.dumps({
    "file": aigc_engine.__file__,
    "isa": native.isa(),
    "names": zoo.names(),
    "images": list(images.shape),
    "kernels": importlib.util.find_spec("aigc_engine.kernels.bias_act") is not None,
    "kernels_on_top": importlib.util.find_spec("kernels") is not None,
}))
"""


def run(command: list[str], *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout; the CMake tree is the one that built the module under test."""
    if (ROOT / "setup.py").is_file() is False:
        pytest.skip("the tests run without their source checkout")
    where = tmp_path_factory.mktemp("wheel")
    # A build folder of its own: setuptools' usual one keeps files that the sources no longer have.
    base = ["-C--global-option=build", f"-C--global-option=--build-base={where / 'build'}"]
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-q", *base]
    scripts = sysconfig.get_path("scripts")
    done = run([*command, "-w", str(where)], cwd=ROOT, PATH=f"{scripts}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    (found,) = where.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel, which finds torch in the running one."""
    environment = tmp_path_factory.mktemp("clean") / "env"
    made = run([sys.executable, "-m", "venv", "--without-pip", str(environment)], cwd=wheel.parent)
    assert made.returncode == 0, made.stderr
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    done = run(install, cwd=wheel.parent)
    assert done.returncode == 0, done.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    # A path line, which adds the folder but doesn't read the .pth files in it: no editable install leaks in.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_is_complete_and_holds_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "aigc_engine").rglob("*.py")}
    wanted |= {f"aigc_engine/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    wanted |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "aigc_engine" / "zoo").glob("*/*") if path.is_file()
    }
    wanted = {name for name in wanted if "__pycache__" not in name and not Path(name).name.startswith(".")}
    module = {name for name in packed if re.fullmatch(r"aigc_engine/_native\.[\w.-]+", name)}
    assert len(module) == 1
    assert packed == wanted | module | {"aigc_engine/py.typed"}


def test_native_module_knows_no_torch(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (module,) = (name for name in archive.namelist() if "/_native." in name)
    assert TORCH_SYMBOLS.search(archive.read(module)) is None


def test_wheel_works_without_compiler_or_checkout(clean_python: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-tools"
    empty.mkdir()
    done = run([str(clean_python), "-W", "error", "-c", PROBE], cwd=tmp_path, PATH=str(empty), PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(clean_python.parent.parent)
    assert found["images"] == [2, 1, 28, 28]
    assert {
        "digits-diffusion",
        "digits-gan",
        "digits-mlp-gan",
        "digits-vae",
        "text-lstm",
        "text-transformer",
    } <= set(found["names"])
    assert found["kernels"]
    assert not found["kernels_on_top"], "a top-level module `kernels` would answer for Hugging Face's"


def test_command_is_installed_and_bench_says_where_it_is(clean_python: Path, tmp_path: Path) -> None:
    command = str(clean_python.parent / "aigc-engine")
    version = run([command, "--version"], cwd=tmp_path)
    assert version.returncode == 0, version.stderr
    assert re.fullmatch(r"aigc-engine \d+\.\d+\.\d+\n", version.stdout)
    bench = run([command, "bench", "ops"], cwd=tmp_path)
    assert bench.returncode == 2
    assert "source checkout" in bench.stderr


@pytest.mark.parametrize(
    "level", ["portable", *(name for name, _, runs in native.isa_levels() if runs and name != "portable")][:2]
)
def test_forced_isa_is_the_one_that_runs(level: str, tmp_path: Path) -> None:
    code = "from aigc_engine import native; print(native.isa())"
    done = run([sys.executable, "-c", code], cwd=tmp_path, AIGC_CPU_ISA=level)
    assert (done.returncode, done.stdout.strip()) == (0, level), done.stderr


def test_impossible_isa_is_refused(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "import aigc_engine.ops"], cwd=tmp_path, AIGC_CPU_ISA="avx1024")
    assert done.returncode != 0
    assert "AIGC_CPU_ISA 'avx1024', expected one of ['portable'" in done.stderr


def test_diffusers_imports_from_the_repository_root() -> None:
    """`kernels/` lies beside it, and transformers looks for a package of that name."""
    pytest.importorskip("diffusers")
    done = run([sys.executable, "-c", "from diffusers import DDIMScheduler, UNet2DModel"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
