"""Triton kernels against their reference, generated from the registry, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from aigc_engine import ops
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

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.timeout(900),  # the first test waits for all of them
    # NumPy's; e^{-x} is infinite where a sigmoid is zero, on the GPU too
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]
LARGEST = 70_000  # elements of a sample's largest tensor: the interpreter takes some 30 ms per program
CASES = [
    pytest.param(op, dtype, id=f"{op.name}-{str(dtype).removeprefix('torch.')}")
    for op in ALL_OPS
    for line in op.lines
    if line.backend == "triton"
    for dtype in sorted(line.dtypes, key=str)
]


def serves(op: Op, sample: Sample) -> bool:
    """Whether the Triton line takes it: its limits are part of the registry."""
    with use_backend("triton"):
        return op.explain(*sample.args, **sample.kwargs).runs == "triton"


def samples_of(op: Op, dtype: torch.dtype) -> list[Sample]:
    samples = [
        sample
        for sample in op.samples(dtype, "cpu")
        if not sample.bench and max(t.numel() for t in tensors_of(sample.args)) <= LARGEST
        if serves(op, sample)
    ]
    assert len(samples) >= 5, f"{op.name} has only {len(samples)} samples in {dtype}"
    # But for attention, which multiplies in the dtype, dtypes differ in loads and stores alone.
    return samples if dtype == torch.float32 or op is ops.attention else samples[::3]


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_triton_parity(op: Op, dtype: torch.dtype) -> None:
    with use_backend("triton"):
        failures = [
            f"{sample.name}: {failure}"
            for sample in samples_of(op, dtype)
            if (failure := sample_failure(op, sample))
        ]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_triton_contract(op: Op, dtype: torch.dtype) -> None:
    """Inputs unchanged, same bits twice, and a row alone has the bits of the same row in a batch."""
    with use_backend("triton"):
        for sample in samples_of(op, dtype)[::5]:
            args = map_tensors(sample.args, clone_layout)
            first = pieces(op(*args, **sample.kwargs))
            for after, before in zip(tensors_of(args), tensors_of(sample.args), strict=True):
                assert same_bits(after, before), f"{sample.name}: inputs changed"
            again = pieces(op(*args, **sample.kwargs))
            assert all(map(same_bits, first, again)), f"{sample.name}: bits differ from one call to the next"
            if sample.batch_axis is not None:
                row_args, row_kwargs = one_row(sample, 0)
                alone = pieces(op(*row_args, **row_kwargs))
                for one, whole in zip(alone, first, strict=True):
                    assert same_bits(one, whole.narrow(sample.batch_axis, 0, 1)), f"{sample.name}: row 0"


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention_over_several_blocks(dtype: torch.dtype, masked: bool, causal: bool) -> None:
    """Long enough for a second block of queries, whose first blocks of keys take the unchecked path."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 150, 40, generator=g).to(dtype) for _ in range(3))
    mask = torch.rand(2, 150, generator=g) < 0.7 if masked else None
    sample = Sample("several_blocks", (q, k, v), {"mask": mask, "causal": causal})
    with use_backend("triton"):
        assert sample_failure(ops.attention, sample) is None


def test_bias_act_over_several_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    with use_backend("triton"):
        for shape, bias in (((1, 2, 2500), 2), ((2, 2500), 2500), ((1, 2, 2500), None)):
            x = torch.randn(shape, generator=g)
            vector = None if bias is None else torch.randn(bias, generator=g)
            assert sample_failure(ops.bias_act, Sample(f"{shape}", (x, vector), {"act": "silu"})) is None, (
                shape
            )


def test_group_norm_silu_with_several_tiles_per_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which otherwise takes a group of more than 64 tiles: minutes in the interpreter."""
    from aigc_engine.kernels import group_norm_silu

    monkeypatch.setattr(group_norm_silu, "MAX_SPLITS", 3)
    x = torch.randn(1, 4, 71, 80, generator=torch.Generator().manual_seed(0)) + 3.0
    with use_backend("triton"):
        assert sample_failure(ops.group_norm_silu, Sample("tiles_8_splits_3", (x, 1))) is None


def test_linear_update_with_strides_of_its_own_per_term() -> None:
    g = torch.Generator().manual_seed(0)
    terms = [torch.randn(3, width, generator=g)[:, :30] for width in (30, 41, 52)]
    out = torch.full((3, 64), torch.nan)[:, :30]
    with use_backend("triton"):
        got = ops.linear_update(terms, torch.ones(3, 3), out=out)
    assert got is out
    assert torch.equal(out, terms[0] + terms[1] + terms[2])
