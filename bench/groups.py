"""All benchmarks by group."""

from __future__ import annotations

from importlib import import_module

from bench.case import Case

GROUPS = {
    "ops": "bench.bench_ops",
    "int8": "bench.bench_int8",
    "network": "bench.bench_network",
    "step": "bench.bench_scheduler_step",
    "diffusion": "bench.bench_diffusion",
    "text": "bench.bench_text",
    "gan": "bench.bench_gan",
    "vae": "bench.bench_vae",
}


def cases_of(group: str) -> list[Case]:
    """The cases of one group, or of "all"."""
    names = list(GROUPS) if group == "all" else [group]
    return [case for name in names for case in import_module(GROUPS[name]).cases()]
