"""Facts about this machine and this installation, each read in one place.

Environment variables (all there are at run time):
    AIGC_CPU_ISA: ISA level of the native kernels (portable, avx2, avx512, amx); an impossible one raises.
    AIGC_NUM_THREADS: threads of the native kernels; default torch.get_num_threads().
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
from pathlib import Path

import torch

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def forced_isa() -> str | None:
    """The level AIGC_CPU_ISA asks for, or None."""
    return os.environ.get("AIGC_CPU_ISA") or None


def forced_threads() -> int | None:
    """The thread count AIGC_NUM_THREADS asks for, or None.

    Raises:
        ValueError: the variable isn't a positive integer.
    """
    text = os.environ.get("AIGC_NUM_THREADS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"AIGC_NUM_THREADS {text!r}, expected a positive integer; unset it for the default")
    return int(text)


@functools.cache
def native_missing() -> str | None:
    """Why the native module can't run here, or None when it can."""
    try:
        import aigc_engine._native  # noqa: F401
    except ImportError as error:
        return f"the native module doesn't load ({error}); reinstall aigc_engine"
    return None


@functools.cache
def triton_missing() -> str | None:
    """Why Triton kernels can't run here, or None when they can (on a GPU or in the interpreter)."""
    if importlib.util.find_spec("triton") is None:
        return "triton isn't installed; pip install triton"
    if torch.cuda.is_available() or triton_interpreted():
        return None
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels in the interpreter, for tests)"


@functools.cache
def triton_interpreted() -> bool:
    """Whether Triton's interpreter is on (TRITON_INTERPRET=1, read by Triton itself)."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def cuda_missing() -> str | None:
    """Why the CUDA launchers can't run here, or None when they can."""
    if native_missing() is not None:
        return native_missing()
    from aigc_engine import _native

    if not _native.with_cuda:
        return "this build has no CUDA launchers (nvcc wasn't found); rebuild with AIGC_CUDA=on"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


MISSING = {"native": native_missing, "triton": triton_missing, "cuda": cuda_missing}


def missing(backend: str) -> str | None:
    """Why a whole backend can't run on this machine, or None."""
    return MISSING[backend]()


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpus() -> list[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@functools.cache
def caches() -> dict[str, str]:
    """Size of each cache that the first CPU sees ("L1d": "48K"); empty where the system doesn't say."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        if not (index / "size").exists():  # on ARM where the firmware has no table of caches
            continue
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return found
