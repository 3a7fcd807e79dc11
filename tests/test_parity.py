"""Generated from the registry: every backend x dtype x sample is held to the contract of its op.

The Triton lines run in the interpreter, in tests/test_triton.py's process.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch

from aigc_engine import native
from aigc_engine.dispatch import Op, use_backend
from aigc_engine.testing import (
    Sample,
    clone_layout,
    map_tensors,
    one_row,
    pieces,
    same_bits,
    sample_failure,
    tensors_of,
)
from tests.conftest import ALL_OPS

LEVELS = [name for name, _, supported in native.isa_levels() if supported]
EMULATED = "amx_emulated"  # differs from portable in products only
NATIVE = [op for op in ALL_OPS if "native" in op.backends()]
CASES = [
    pytest.param(op, dtype, level, id=f"{op.name}-{str(dtype).removeprefix('torch.')}-{level}")
    for op in NATIVE
    for line in op.lines
    if line.backend == "native"
    for dtype in sorted(line.dtypes & op.dtypes, key=str)
    for level in LEVELS
    if op.tiled or level != EMULATED
]


def samples_of(op: Op, dtype: torch.dtype) -> list[Sample]:
    samples = list(itertools.takewhile(lambda sample: not sample.bench, op.samples(dtype, "cpu")))
    assert samples, f"{op.name} has no samples in {dtype}"
    return samples


@pytest.mark.parametrize(("op", "dtype", "level"), CASES)
def test_native_parity(op: Op, dtype: torch.dtype, level: str) -> None:
    with native.force_isa(level), use_backend("native"):
        failures = [
            f"{sample.name}: {failure}"
            for sample in samples_of(op, dtype)
            if (failure := sample_failure(op, sample))
        ]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("op", [op for op in NATIVE if op.lines[0].shortcut], ids=lambda op: op.name)
def test_shortcut_has_the_bits_of_its_adapter(op: Op) -> None:
    taken = 0
    for dtype in op.dtypes:
        for sample in samples_of(op, dtype):
            for shortcut in op._shortcuts["auto"]:
                results = shortcut(*sample.args, **sample.kwargs)
                if results is not NotImplemented:
                    taken += 1
                    expected = op.implementation("native")(*sample.args, **sample.kwargs)
                    assert all(map(same_bits, pieces(results), pieces(expected))), sample.name
    assert taken


@pytest.mark.parametrize(("op", "dtype", "level"), CASES)
def test_native_contract(op: Op, dtype: torch.dtype, level: str) -> None:
    """Inputs unchanged, same bits twice and with 1, 2 and 7 threads, memory format as the reference's."""
    with native.force_isa(level), use_backend("native"):
        for sample in samples_of(op, dtype):
            args = map_tensors(sample.args, clone_layout)
            first = pieces(op(*args, **sample.kwargs))
            for after, before in zip(tensors_of(args), tensors_of(sample.args), strict=True):
                assert torch.equal(after.nan_to_num(), before.nan_to_num()), f"{sample.name}: inputs changed"
            for threads in (1, 2, 7):
                with native.use_threads(threads):
                    again = pieces(op(*args, **sample.kwargs))
                assert all(same_bits(a, b) for a, b in zip(first, again, strict=True)), (
                    f"{sample.name}: bits differ with {threads} threads"
                )


@pytest.mark.parametrize(("op", "dtype", "level"), CASES)
def test_native_batch_invariance(op: Op, dtype: torch.dtype, level: str) -> None:
    """A row computed alone has the bits of the same row in a batch."""
    with native.force_isa(level), use_backend("native"):
        for sample in samples_of(op, dtype):
            if sample.batch_axis is None:
                continue
            rows = tensors_of(sample.args)[0].shape[sample.batch_axis]
            whole = pieces(op(*sample.args, **sample.kwargs))
            for row in {0, rows - 1}:
                args, kwargs = one_row(sample, row)
                alone = pieces(op(*args, **kwargs))
                for a, b in zip(alone, whole, strict=True):
                    assert same_bits(a, b.narrow(sample.batch_axis, row, 1)), f"{sample.name}: row {row}"


def test_all_levels_give_the_same_bits() -> None:
    for op in (op for op in NATIVE if not op.tiled):
        for sample in samples_of(op, min(op.dtypes, key=str)):
            results = []
            for level in LEVELS:
                with native.force_isa(level), use_backend("native"):
                    results.append(pieces(op(*sample.args, **sample.kwargs)))
            for other in results[1:]:
                assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True)), (
                    f"{op.name} {sample.name}"
                )


@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.name)
def test_gradient_runs_the_reference(op: Op) -> None:
    sample = samples_of(op, torch.float32 if torch.float32 in op.dtypes else min(op.dtypes, key=str))[0]
    args = map_tensors(sample.args, lambda t: t.requires_grad_() if t.is_floating_point() else t)
    needs = any(t.requires_grad for t in tensors_of(args))
    with torch.enable_grad() if needs else nullcontext():
        explanation = op.explain(*args, **sample.kwargs)
    assert explanation.runs == "reference" or not needs
