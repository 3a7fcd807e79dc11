"""The native module: its ISA level, its threads, and (in the modules beside this) one adapter per op.

An adapter turns tensors into addresses, sizes and strides; validation has been done by the op.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch

from aigc_engine import capability

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
FRESH_BYTES = 32 << 20  # glibc takes larger blocks from the system, page by page, and never keeps them
# csrc/cpu/args.h: enum class CeilingLoop
CEILING_LOOPS = ("read", "fma_float32", "dot_bfloat16", "dot_int8", "tile_bfloat16", "tile_int8")
OPENMP = ("GOMP_parallel", "omp_get_thread_num")
_threads: ContextVar[int | None] = ContextVar("aigc_engine_threads", default=None)


def _share_openmp() -> None:
    """Tells where PyTorch's OpenMP is: its aarch64 wheels load libgomp for themselves, not for all."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library))  # and what it needs
        entries = [ctypes.cast(found[name], ctypes.c_void_p).value for name in OPENMP]
    except (OSError, AttributeError):  # another system or another runtime: what is global serves
        return
    _native.use_openmp(*entries)


if capability.native_missing() is None:
    from aigc_engine import _native

    _share_openmp()

    _forced = capability.forced_isa()
    if _forced is not None and not _native.force_isa(_forced):
        _runnable = [name for name, _, supported in _native.isa_levels() if supported]
        raise ValueError(f"AIGC_CPU_ISA {_forced!r}, expected one of {_runnable} on this machine")
    _default_threads = capability.forced_threads()
else:
    warnings.warn(
        f"aigc_engine: {capability.native_missing()}; CPU calls run on the PyTorch reference",
        RuntimeWarning,
        stacklevel=2,
    )


def isa() -> str:
    """The ISA level whose kernels run."""
    return _native.isa()


def isa_levels() -> list[tuple[str, bool, bool]]:
    """(name, built, runs here) of every level, worst first."""
    return list(_native.isa_levels())


def products() -> tuple[bool, bool]:
    """Whether the running level has bfloat16 tiles, and bfloat16 products faster than float32's."""
    return _native.isa_products()


@contextlib.contextmanager
def force_isa(level: str) -> Iterator[None]:
    """Runs the kernels of another ISA level (process-wide: for tests and benchmarks).

    Raises:
        ValueError: this build or this machine lacks the level.
    """
    before = _native.isa()
    if not _native.force_isa(level):
        runnable = [name for name, _, supported in _native.isa_levels() if supported]
        raise ValueError(f"force_isa: level {level!r}, expected one of {runnable} on this machine")
    try:
        yield
    finally:
        _native.force_isa(before)


def threads() -> int:
    """Threads of the next native call: `use_threads`, else AIGC_NUM_THREADS, else torch.get_num_threads().

    The default never exceeds the CPUs of the process's affinity mask.
    """
    chosen = _threads.get()
    if chosen is not None:
        return chosen
    if _default_threads is not None:
        return _default_threads
    wanted = torch.get_num_threads()
    return wanted if wanted == 1 else min(wanted, _native.available_cpus())


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Sets the native thread count for the current context (more than there are CPUs is allowed)."""
    if count < 1:
        raise ValueError(f"use_threads: count {count}, expected at least 1")
    token = _threads.set(count)
    try:
        yield
    finally:
        _threads.reset(token)


def ceiling(loop: str, rounds: int, data: torch.Tensor | None = None) -> float:
    """Runs `rounds` of a loop that only computes, in registers, or only reads `data`, on each thread.

    Returns:
        Operations done (a product and its addition are two) or bytes read, by all threads together; 0 where
        the ISA level has no such instruction.
    """
    address, size = (0, 0) if data is None else (data.data_ptr(), data.numel() * data.element_size())
    return _native.ceiling(CEILING_LOOPS.index(loop), address, size, rounds, threads())


def on_huge_pages(out: torch.Tensor) -> torch.Tensor:
    """A tensor just allocated, in 2 MiB pages where it's so large that its memory is new each time.

    Measured on 134 MB: group_norm_silu took 78 ms with a page fault every 4 KiB, 39 ms with this.
    """
    size = out.numel() * out.element_size()
    if size >= FRESH_BYTES:
        _native.prefer_huge_pages(out.data_ptr(), size)
    return out


if capability.native_missing() is None:
    _native.learn_tensors(torch.Tensor, torch.empty_like, threads)
