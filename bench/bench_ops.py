"""Every op with a native line, on its benchmark shapes: the user's call against PyTorch's fastest peer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from aigc_engine import ops
from aigc_engine.dispatch import Op
from aigc_engine.testing import Sample, parity_failure, pieces, to_float64
from bench.case import Case, Mismatch, Work

READS = 8  # a job that reads so many times what it writes is held against reading, not copying
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
    family = f"{op.name}-{str(dtype).removeprefix('torch.')}"
    peer = "reference" if op.peer is op.reference else op.peer.__name__.strip("_")
    for sample in op.samples(dtype, "cpu"):
        if sample.bench:
            name = f"{family}-{sample.name}"
            build = partial(_work, op, dtype, sample.name, name)
            target = TARGETS.get((op.name, sample.name))
            yield Case("ops", name, f"PyTorch {peer}", build, target, seconds=1.0, family=family)


def _work(op: Op, dtype: torch.dtype, sample_name: str, name: str) -> Work:
    sample = next(s for s in op.samples(dtype, "cpu") if s.bench and s.name == sample_name)
    ours = partial(op, *sample.args, **sample.kwargs)
    theirs = partial(op.peer, *sample.args, **sample.kwargs)
    flops, touched = op.cost(*sample.args, **sample.kwargs) if op.cost else (0.0, 0.0)
    return Work(
        ours,
        theirs,
        partial(_verify, op, sample, name),
        flops,
        touched,
        arithmetic=op.arithmetic or dtype,
        reads=touched > (READS + 1) * sum(t.nbytes for t in pieces(ours())),
    )


def _verify(op: Op, sample: Sample, name: str) -> float:
    runs = op.explain(*sample.args, **sample.kwargs).runs
    if runs != "native":
        raise Mismatch(f"{name}: runs on {runs}, expected native; nothing was timed")
    got = pieces(op(*sample.args, **sample.kwargs))
    theirs = pieces(op.peer(*sample.args, **sample.kwargs))
    reference = pieces(op.reference(*sample.args, **sample.kwargs))
    truth = pieces(op.reference(*to_float64(sample.args), **to_float64(dict(sample.kwargs))))
    for side, results in (("", got), ("their result: ", theirs)):
        for result, plain, exact in zip(results, reference, truth, strict=True):
            failure = parity_failure(result, plain, exact, slack=op.slack)
            if failure:
                raise Mismatch(f"{name}: {side}{failure}; nothing was timed")
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(got, theirs, strict=True))
