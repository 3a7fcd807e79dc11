"""All benchmarks by group."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from bench.case import Case

GROUPS = {
    "ops": "bench.bench_ops",
    "int8": "bench.bench_int8",
    "network": "bench.bench_network",
    "peers": "bench.bench_network:peer_cases",
    "step": "bench.bench_scheduler_step",
    "diffusion": "bench.bench_diffusion",
    "text": "bench.bench_text",
    "gan": "bench.bench_gan",
    "vae": "bench.bench_vae",
}


def cases_of(group: str) -> list[Case]:
    """The cases of one group, or of "all", which leaves out what needs packages of others."""
    names = [name for name in GROUPS if name != "peers"] if group == "all" else [group]
    return [case for name in names for case in _cases(name)]


def _cases(group: str) -> Iterator[Case]:
    module, _, function = GROUPS[group].partition(":")
    yield from getattr(import_module(module), function or "cases")()
