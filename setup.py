"""Builds the native module with CMake + ninja and maps `kernels/` to `aigc_engine.kernels`.

AIGC_CUDA=auto (default) builds the CUDA launchers when nvcc is found; `on` demands them, `off` omits them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """One CMake project holds every native source; setuptools only decides where the module goes."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Not setuptools' temporary directory: an editable reinstall then rebuilds only what changed.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("AIGC_CUDA", "auto")
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"setup.py: AIGC_CUDA {cuda!r}, expected auto, on or off")
        import pybind11

        subprocess.run(
            [
                cmake_command(),
                "-G",
                "Ninja",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DAIGC_CUDA={cuda}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DAIGC_OUTPUT_DIR={target.parent}",
                f"-DAIGC_OUTPUT_NAME={target.name}",
            ],
            check=True,
        )
        subprocess.run([cmake_command(), "--build", str(build), "--target", "_native"], check=True)


def cmake_command() -> str:
    found = shutil.which("cmake")
    if found is None:
        raise SystemExit("setup.py: cmake not found; pip install cmake ninja")
    return found


setup(
    packages=[
        *find_packages(include=["aigc_engine", "aigc_engine.*"]),
        "aigc_engine.kernels",
    ],
    package_dir={"aigc_engine.kernels": "kernels"},
    package_data={"aigc_engine": ["py.typed", "zoo/*/*", "zoo/*.json"]},
    ext_modules=[Extension("aigc_engine._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
