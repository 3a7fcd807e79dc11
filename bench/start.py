"""`python -m bench.start [WAY ...] [--save]`: what a service waits for, and the memory that it needs.

Stable Diffusion 1.5's denoiser in bfloat16, prompts of two. Each way runs in a process of its own: seconds
from the built module to the first result (accelerate: capture, fuse, pack), to the first one of another
shape, and the most memory on the way and what is left at the end, both without what Python, PyTorch and its
peers' modules took before. File-backed pages, which the system takes back when it needs them, count too.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aigc_engine import accelerate
from aigc_engine.zoo.files import replacing
from bench import machine, networks
from bench.record import RESULTS
from bench.rivals import PEERS, Rival

SECONDS = 1200  # for one way, at most
GIB = 2.0**30
WAYS = ("eager", "accelerate", "saved", "offload", "torch.compile", "openvino")
HEADINGS = ("way", "first call", "another shape", "most memory", "memory at the end")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.start", description=__doc__)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)}; default all")
    parser.add_argument("--save", action="store_true", help=f"write a record to {RESULTS.name}/")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.ways) - set(WAYS):
        parser.error(f"{unknown.pop()}: expected one of {', '.join(WAYS)}")
    if options.child:
        print(json.dumps(_measure(options.ways[0], options.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a disk, which /tmp often isn't
        rows = [_in_a_process(way, folder) for way in options.ways or WAYS]
    text = _markdown(rows)
    print(text)
    if options.save:
        path = RESULTS / f"{datetime.date.today()}-start.md"
        with replacing(path) as temporary:
            temporary.write_text(text)
    return 0


def _in_a_process(way: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.start", way, "--child", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        return {"way": way, "failure": done.stderr.strip().splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(way: str, folder: Path) -> dict[str, Any]:
    """Seconds and bytes of one way, in this process."""
    call = _prepared(way)
    before = _resident()
    found: dict[str, Any] = {"way": way}
    with torch.no_grad(), _peak() as most:
        model, args, kwargs = networks.build("sd15_unet_512px_batch_2", torch.bfloat16)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        model = model.to(memory_format=torch.channels_last)
        _trim()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        begin = time.perf_counter()
        fast = call(model, args, kwargs, folder)
        fast(*args, **kwargs)
        found["first"] = time.perf_counter() - begin
    found |= {"weights": weights, "most": most[0] - before}
    if way not in ("openvino", "torch.compile"):  # which are made for one shape
        with torch.no_grad():
            _, others, _ = networks.sd15_unet(256, 1)
            begin = time.perf_counter()
            fast(others[0].bfloat16(), others[1], others[2].bfloat16())
            found["another"] = time.perf_counter() - begin
    _trim()
    return {**found, "end": _resident() - before}


def _prepared(way: str) -> Callable[[nn.Module, Any, Any, Path], Callable[..., Any]]:
    """What makes a module fast in this way, its packages imported."""
    import diffusers  # noqa: F401 (its memory isn't the networks')

    if way == "eager":
        return lambda model, args, kwargs, folder: model
    if way == "offload":
        return lambda model, args, kwargs, folder: accelerate(model, offload=folder)
    if way == "saved":
        return lambda model, args, kwargs, folder: accelerate(model, saved=folder / "graph")
    if way == "accelerate":
        return _keeping
    return partial(_rival, PEERS[way])


def _rival(rival: Rival, model: nn.Module, args: Any, kwargs: Any, folder: Path) -> Callable[..., Any]:
    run = rival(model, args, kwargs)
    return lambda *args, **kwargs: run()


def _keeping(model: nn.Module, args: Any, kwargs: Any, folder: Path) -> Callable[..., Any]:
    fast = accelerate(model)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = fast(*args, **kwargs)
        if not (folder / "graph").exists():
            fast.save(folder / "graph")
        return result

    return call


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Bytes of the most memory that the process had in the block."""
    found: list[int] = []
    yield found
    status = Path("/proc/self/status").read_text()
    found.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def _trim() -> None:
    """Gives back what was freed."""
    ctypes.CDLL(None).malloc_trim(0)


def _markdown(rows: list[dict[str, Any]]) -> str:
    m = machine.describe()
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    weights = max((row.get("weights", 0) for row in rows), default=0)
    lines = [
        f"# start, {datetime.date.today()}",
        "",
        f"- {m['cpu']} ({m['arch']}), {m['cpus']} CPUs; native ISA {m['isa']}; load {machine.load()}",
        f"- {versions}, Python {m['python']}, commit {m['commit']}",
        f"- Stable Diffusion 1.5's UNet, bfloat16, {weights / GIB:.2f} GiB of weights; first call: 512 px, "
        "batch 2, then 256 px, batch 1",
        "- reproduce: `python -m bench.start --save`",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
    ]
    for row in rows:
        if "failure" in row:
            cells = [row["way"], f"failed: {row['failure']}", "", "", ""]
        else:
            another = f"{row['another']:.2f} s" if "another" in row else ""
            sizes = [f"{row[name] / GIB:.2f} GiB" for name in ("most", "end")]
            cells = [row["way"], f"{row['first']:.2f} s", another, *sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
