"""What the generated parity tests don't say of resize2d: bad input, slices, pixels."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import use_backend
from aigc_engine.native import resample as adapter
from aigc_engine.ops import resize2d

X = torch.ones(2, 3, 4, 5)
NHWC = torch.channels_last
DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


BAD = [
    (resize2d, ([1.0], (2, 2)), {}, TypeError, "resize2d: x list, expected a torch.Tensor"),
    (resize2d, (X.int(), (2, 2)), {}, TypeError, "resize2d: x torch.int32, expected a floating dtype"),
    (resize2d, (X[0], (2, 2)), {}, ValueError, "resize2d: x has 3 dimensions, expected 4"),
    (resize2d, (X, 2), {}, TypeError, r"resize2d: size 2, expected \(height, width\), two ints"),
    (resize2d, (X, (2.0, 2)), {}, TypeError, r"resize2d: size \(2.0, 2\), expected \(height, width\)"),
    (
        resize2d,
        (X, (2,)),
        {},
        ValueError,
        r"resize2d: size \(2,\), expected \(height, width\), each",
    ),
    (resize2d, (X, (0, 2)), {}, ValueError, r"resize2d: size \(0, 2\), expected"),
    (resize2d, (X, (2, 2)), {"mode": "cubic"}, ValueError, "resize2d: mode 'cubic', expected one of"),
    (
        resize2d,
        (X, (2, 2)),
        {"align_corners": True},
        ValueError,
        "resize2d: align_corners with mode",
    ),
    (
        resize2d,
        (X[:, :, :0], (2, 2)),
        {},
        ValueError,
        r"resize2d: x shape \(2, 3, 0, 5\), expected at",
    ),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "kind", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input(backend: str, op, args: tuple, kwargs: dict, kind: type[Exception], message: str) -> None:
    with use_backend(backend), pytest.raises(kind, match=message):
        op(*args, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC])
def test_nearest_chooses_pytorchs_pixels(dtype: torch.dtype, layout: torch.memory_format) -> None:
    rng = random.Random(0)
    for _ in range(200):
        H, W, height, width = (rng.choice((1, 2, 3, 7, 10, 49, 64, 97, 113)) for _ in range(4))
        x = torch.arange(H * W, dtype=torch.float32).reshape(1, 1, H, W).to(dtype).expand(1, 2, H, W)
        x = x.contiguous(memory_format=layout)
        with use_backend("native"):
            assert torch.equal(resize2d(x, (height, width)), F.interpolate(x, size=(height, width)))


def test_layout_does_not_change_the_bits() -> None:
    x = randn(2, 20, 9, 11)
    for align in (False, True):
        args = {"mode": "bilinear", "align_corners": align}
        with use_backend("native"):
            first = resize2d(x, (23, 17), **args)
            last = resize2d(x.contiguous(memory_format=NHWC), (23, 17), **args)
        assert first.is_contiguous() and last.is_contiguous(memory_format=NHWC)
        assert torch.equal(first, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC])
def test_only_the_slice_is_written(mode: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = randn(2, 5, 6, 7, dtype=dtype).contiguous(memory_format=layout)
    whole = torch.zeros(2, 12, 9, 20, dtype=dtype).contiguous(memory_format=layout)
    adapter.resize_into(whole[:, 3:8], x, mode=mode)
    assert torch.equal(whole[:, 3:8], resize2d(x, (9, 20), mode=mode))
    assert not whole[:, :3].any()
    assert not whole[:, 8:].any()
    with pytest.raises(ValueError, match="resize2d: out strides .*, expected contiguous channels or columns"):
        adapter.resize_into(torch.zeros(2, 10, 9, 40)[:, ::2, :, ::2], x)
