"""Every op with a native line, on its benchmark shapes: the user's call against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine import ops
from aigc_engine.dispatch import Op
from aigc_engine.testing import Sample, parity_failure, to_float64
from bench.case import Case, Mismatch, Work

TARGETS = {("group_norm_silu", "sd15_unet_64px_latent"): 2.0}


def cases() -> Iterator[Case]:
    """One case per op, dtype and benchmark sample, generated from the registry."""
    for _, op in sorted(vars(ops).items()):
        if not isinstance(op, Op):
            continue
        for line in op.lines:
            if line.backend != "native":
                continue
            for dtype in sorted(line.dtypes & op.dtypes, key=str):
                yield from _cases_of(op, dtype)


def _cases_of(op: Op, dtype: torch.dtype) -> Iterator[Case]:
    for sample in op.samples(dtype, "cpu"):
        if sample.bench:
            name = f"{op.name}-{str(dtype).removeprefix('torch.')}-{sample.name}"
            build = partial(_work, op, dtype, sample.name, name)
            yield Case("ops", name, "PyTorch reference", build, target=TARGETS.get((op.name, sample.name)))


def _work(op: Op, dtype: torch.dtype, sample_name: str, name: str) -> Work:
    sample = next(s for s in op.samples(dtype, "cpu") if s.bench and s.name == sample_name)
    ours = partial(op, *sample.args, **sample.kwargs)
    theirs = partial(op.reference, *sample.args, **sample.kwargs)
    flops, touched = op.cost(*sample.args, **sample.kwargs) if op.cost else (0.0, 0.0)
    return Work(ours, theirs, partial(_verify, op, sample, name), flops, touched)


def _verify(op: Op, sample: Sample, name: str) -> float:
    runs = op.explain(*sample.args, **sample.kwargs).runs
    if runs != "native":
        raise Mismatch(f"{name}: runs on {runs}, expected native; nothing was timed")
    got = _tensors(op(*sample.args, **sample.kwargs))
    reference = _tensors(op.reference(*sample.args, **sample.kwargs))
    truth = _tensors(op.reference(*to_float64(sample.args), **to_float64(dict(sample.kwargs))))
    worst = 0.0
    for mine, theirs, exact in zip(got, reference, truth, strict=True):
        failure = parity_failure(mine, theirs, exact, slack=op.slack)
        if failure:
            raise Mismatch(f"{name}: {failure}; nothing was timed")
        worst = max(worst, (mine.double() - theirs.double()).abs().max().item())
    return worst


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
