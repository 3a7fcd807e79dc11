"""`aigc-engine bench`: runs the suite of the source checkout in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aigc_engine

ROOT = Path(aigc_engine.__file__).resolve().parent.parent


def run(
    group: str,
    only: list[str],
    *,
    list_only: bool = False,
    threads: int | None = None,
    save: bool = False,
    plot: bool = False,
    out: Path | None = None,
) -> int:
    """Runs `python -m bench` and returns its exit status.

    Raises:
        ValueError: the package is installed without its source checkout.
    """
    if not (ROOT / "bench" / "__main__.py").is_file():
        raise ValueError(
            "bench: the benchmarks come with the source checkout, not with the installed package; "
            "clone the repository and `make bench`"
        )
    arguments = [group]
    if list_only:
        arguments.append("--list")
    if threads is not None:
        arguments.append(f"--threads={threads}")
    if save:
        arguments.append("--save")
    if out is not None:
        arguments.append(f"--plot={out.resolve()}")
    elif plot:
        arguments.append("--plot")
    if only:
        arguments += ["--only", *only]
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, check=False).returncode
