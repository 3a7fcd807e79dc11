"""The machine a record was made on, as far as a reader needs it to judge the figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from aigc_engine import capability, native

PACKAGES = ("aigc_engine", "torch", "numpy", "diffusers", "transformers")
ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """CPU, threads, ISA level, versions and commit."""
    return {
        "cpu": capability.cpu_name(),
        "arch": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "native_threads": native.threads(),
        "isa": native.isa(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def load() -> float:
    """Processes wanting a CPU, averaged over the last minute; above the CPU count the machine is shared."""
    return round(os.getloadavg()[0], 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
