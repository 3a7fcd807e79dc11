"""What this machine offers, and who serves which op: `python -m aigc_engine.info`, `aigc-engine info`."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

import aigc_engine
from aigc_engine import capability, native, ops
from aigc_engine.dispatch import REFERENCE, Op
from aigc_engine.registry import Line

SERVES = "serves"
WIDTH = 160  # where the output isn't a terminal, whose width would be unknown


@dataclass(frozen=True)
class Service:
    """What one backend of one op does on this machine.

    Args:
        op, backend: their names.
        scope: the dtypes and limits that it serves.
        cpu, cuda: "serves", or why not.
    """

    op: str
    backend: str
    scope: str
    cpu: str
    cuda: str


def machine() -> dict[str, str]:
    """Facts about the machine and the installation, by name."""
    allowed = capability.cpus()
    return {
        "aigc_engine": f"{aigc_engine.__version__} on Python {platform.python_version()}",
        "system": platform.platform(),
        "CPU": f"{capability.cpu_name()} ({platform.machine()})",
        "CPUs": f"{len(allowed)} for this process: {_runs(allowed)}",
        "caches": ", ".join(f"{name} {size}" for name, size in capability.caches().items()) or "unknown",
        "native": _native(),
        "ISA levels": _isa_levels(),
        "threads": _threads(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()} on the CPU",
        "Triton": _triton(),
        "CUDA": _cuda(),
    }


def services() -> list[Service]:
    """One row per op and backend, in the registry's order, each op's reference last."""
    rows = []
    for op in (value for value in vars(ops).values() if isinstance(value, Op)):
        scopes = {line.backend: _scope(line) for line in op.lines}
        for on_cpu, on_cuda in zip(op.survey("cpu"), op.survey("cuda"), strict=True):
            cuda = on_cuda.reasons
            if on_cuda.backend == REFERENCE and not torch.cuda.is_available():
                cuda = ("no CUDA device",)
            cells = ("; ".join(reasons) or SERVES for reasons in (on_cpu.reasons, cuda))
            rows.append(Service(op.name, on_cpu.backend, scopes.get(on_cpu.backend, "any dtype"), *cells))
    return rows


def main(console: Console | None = None) -> None:
    """Prints both tables."""
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    facts = Table(title="This machine", show_header=False, title_justify="left")
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, fact in machine().items():
        facts.add_row(name, fact)
    console.print(facts, markup=False)
    served = Table(title="Who serves what, first in priority order", title_justify="left")
    for heading in ("op", "backend", "serves", "on the CPU", "on CUDA"):
        served.add_column(heading, overflow="fold")
    rows = services()
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or following.op != row.op
        served.add_row(row.op, row.backend, row.scope, row.cpu, row.cuda, end_section=last)
    console.print(served, markup=False)


def _runs(numbers: list[int]) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _isa_levels() -> str:
    if capability.native_missing():
        return "none"
    chosen = native.isa()
    forced = " by AIGC_CPU_ISA" if capability.forced_isa() else ""
    shown = []
    for name, built, runs in native.isa_levels():
        state = f"chosen{forced}" if name == chosen else "" if runs else "not here" if built else "not built"
        shown.append(f"{name} ({state})" if state else name)
    return ", ".join(shown)


def _threads() -> str:
    torch_threads = f"torch {torch.get_num_threads()}"
    if capability.native_missing():
        return torch_threads
    source = "AIGC_NUM_THREADS" if capability.forced_threads() else "as torch"
    return f"{torch_threads}, native {native.threads()} ({source})"


def _native() -> str:
    missing = capability.native_missing()
    if missing:
        return missing
    from aigc_engine import _native as module

    return f"{module.__file__}, {'with' if module.with_cuda else 'without'} CUDA launchers"


def _triton() -> str:
    missing = capability.triton_missing()
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return missing or "installed, version unknown"
    state = "interpreting on the CPU" if capability.triton_interpreted() else missing
    return f"{version}, {state}" if state else version


def _cuda() -> str:
    if not torch.cuda.is_available():
        version = torch.version.cuda
        return f"no device; torch is built {f'for {version}' if version else 'without it'}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}: {', '.join(names)}"


def _scope(line: Line) -> str:
    dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in line.dtypes))
    shown = (sorted(limit) if isinstance(limit, frozenset) else limit for limit in line.limits.values())
    limits = [f"{name} {limit}" for name, limit in zip(line.limits, shown, strict=True)]
    return "; ".join([dtypes, *limits])


if __name__ == "__main__":
    main()
