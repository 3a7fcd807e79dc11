"""Tensors that reach over more than 2^31 elements, in memory that takes room only where it's touched."""

from __future__ import annotations

import functools
import mmap
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from aigc_engine import _native, native, ops
from aigc_engine.dispatch import use_backend
from aigc_engine.native.conv import as_pixels
from aigc_engine.native.linear import PRODUCT_CODES, epilogue
from aigc_engine.native.pointwise import run
from aigc_engine.native.resample import resize_into

FAR = 2**31 + 16  # elements; as 32 bits they'd be 16 back from where they should be
# The mmap module names it from Python 3.13 on.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
DTYPES = [torch.float32, torch.bfloat16]
pytestmark = [pytest.mark.usefixtures("isa_level"), pytest.mark.parametrize("dtype", DTYPES)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparse(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros at these strides; only pages that are written take memory."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"this machine reserves no {elements * dtype.itemsize / 2**30:.0f} GiB: {error}")
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def far(x: Tensor, axis: int) -> Tensor:
    """x, its elements along one axis FAR apart, the others as they were."""
    strides = list(x.stride())
    strides[axis] = FAR
    return sparse(x.shape, strides, x.dtype).copy_(x)


def nhwc(*shape: int, dtype: torch.dtype) -> Tensor:
    return randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)


def test_rows_of_linear(dtype: torch.dtype) -> None:
    x, residual = randn(3, 40).to(dtype), randn(3, 24, seed=1).to(dtype)
    for quantize in (None, "int8"):
        w = ops.pack_linear(randn(24, 40, seed=2).to(dtype), quantize=quantize)
        with use_backend("native"):
            expected = ops.linear(x, w, residual=residual)
            assert torch.equal(ops.linear(far(x, 0), w, residual=far(residual, 0)), expected)


@pytest.mark.parametrize("axis", [0, 2, 3])
@pytest.mark.parametrize(("C", "groups"), [(20, 1), (32, 1), (24, 24)])
def test_pixels_of_conv2d(dtype: torch.dtype, C: int, groups: int, axis: int) -> None:
    """Gathered patches, an image packed once or Winograd's tiles, depthwise."""
    shape = [2, C, 5, 4]
    shape[axis] = 2
    x = nhwc(*shape, dtype=dtype)
    moved = far(x, axis)
    assert as_pixels(moved) is moved
    for quantize in (None, "int8"):
        w = randn(24, C // groups, 3, 3, seed=1).to(dtype)
        packed = ops.pack_conv2d(w, groups=groups, quantize=quantize)
        with use_backend("native"):
            same = functools.partial(ops.conv2d, padding=1, groups=groups, act="silu")
            assert torch.equal(same(moved, packed), same(x, packed))


def test_results_of_products(dtype: torch.dtype) -> None:
    x, w = randn(3, 40).to(dtype), ops.pack_linear(randn(24, 40, seed=1).to(dtype))
    with use_backend("native"):
        expected = ops.linear(x, w)
    out = sparse((3, 24), (FAR, 1), dtype)
    assert w.data is not None
    e = _native.Epilogue(
        out=out.data_ptr(), columns=24, out_stride=FAR, dtype=native.DTYPE_CODES[dtype], bias=0
    )
    _native.linear(x.data_ptr(), 40, w.data.data_ptr(), 3, 40, PRODUCT_CODES[w.product], e, 2)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("C", "groups"), [(20, 1), (32, 1), (24, 24)])
def test_places_of_convolutions(dtype: torch.dtype, C: int, groups: int) -> None:
    """Samples whose rows are 2^28 apart, 24 elements each."""
    x = nhwc(2, C, 4, 4, dtype=dtype)
    w = ops.pack_conv2d(randn(24, C // groups, 3, 3, seed=1).to(dtype), groups=groups)
    assert w.data is not None
    apart = 2**28
    out = sparse((2, 24, 2, 2), (apart * 24, 1, 48, 24), dtype)
    kernel = _native.depthwise if groups > 1 else _native.conv
    kernel(
        inputs=[[x.data_ptr(), C, x.stride(0), x.stride(2), x.stride(3)]],
        weight=w.data.data_ptr(),
        size=(2, 4, 4),
        out_size=(2, 2),
        taps=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
        padding=(0, 0),
        upsample=1,
        groups=groups,
        place=(0, apart, 2, 1),
        product=PRODUCT_CODES[w.product],
        epilogue=epilogue(out, 24, None, "none"),
        threads=2,
    )
    truth = torch.nn.functional.conv2d(x.double(), w.source.double(), groups=groups)
    torch.testing.assert_close(out.double(), truth, rtol=1e-2, atol=1e-2 * truth.abs().max().item())


def test_heads_of_attention(dtype: torch.dtype) -> None:
    q, k, v = (randn(2, 2, 5, 16, seed=seed).to(dtype) for seed in range(3))
    with use_backend("native"):
        expected = ops.attention(q, k, v)
        for axis in (0, 1, 2):
            moved = [far(each, axis) for each in (q, k, v)]
            assert torch.equal(ops.attention(*moved), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_strided_elementwise(dtype: torch.dtype, axis: int) -> None:
    x = randn(2, 2, 3, 33).to(dtype)
    program = [("silu", 0), ("mul", 0, 1)]
    expected = ops.pointwise(program, x)
    out = sparse(x.shape, far(x, axis).stride(), dtype)
    assert torch.equal(run(program, out, far(x, axis)), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resize(dtype: torch.dtype, mode: str, layout: torch.memory_format) -> None:
    x = randn(2, 17, 2, 3).to(dtype).contiguous(memory_format=layout)
    with use_backend("native"):
        expected = ops.resize2d(x, (3, 5), mode=mode)
    for axis in (0, 2):
        out = far(torch.zeros_like(expected), axis)
        assert torch.equal(resize_into(out, far(x, axis), mode=mode), expected)


def test_rows_of_solver_steps(dtype: torch.dtype) -> None:
    terms = [randn(2, 3, 7, seed=seed).to(dtype) for seed in range(2)]
    noise = {
        "noise_scale": torch.tensor([0.5, 0.25]),
        "seeds": torch.tensor([3, 4]),
        "streams": torch.tensor([0, 2**33]),
    }
    coefficients = randn(2, 2, seed=5)
    with use_backend("native"):
        expected = ops.linear_update(terms, coefficients, **noise)
        out = sparse((2, 3, 7), (FAR, 7, 1), dtype)
        got = ops.linear_update([far(term, 0) for term in terms], coefficients, out=out, **noise)
    assert got is out
    assert torch.equal(out, expected)


def test_rows_of_logits(dtype: torch.dtype) -> None:
    logits, uniform = randn(2, 100).to(dtype), torch.tensor([0.3, 0.8])
    with use_backend("native"):
        expected = ops.sample_token(logits, uniform)
        assert torch.equal(ops.sample_token(far(logits, 0), uniform), expected)
