"""Convolutions of tile levels over an image packed once: the bits of a product with gathered patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine import _native, native
from aigc_engine.dispatch import use_backend
from aigc_engine.geometry import out_size, pads_of, pair
from aigc_engine.native.linear import PRODUCT_CODES, epilogue
from aigc_engine.ops import conv1d, conv2d, linear, pack_conv1d, pack_conv2d, pack_linear

TILED = [name for name, _, runs in native.isa_levels() if runs and name.startswith("amx")]
PRODUCTS = {"bfloat16": torch.bfloat16, "medium": torch.float32, "high": torch.float32}
pytestmark = [pytest.mark.parametrize("level", TILED), pytest.mark.usefixtures("poisoned", "one_thread")]


@pytest.fixture
def poisoned():
    """Scratch is full of NaN: what isn't written isn't read, or only for what nobody reads."""
    _native.poison_scratch(True)
    yield
    _native.poison_scratch(False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nhwc(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def precision_of(product: str) -> str | None:
    return None if product == "bfloat16" else product


def patches(x: Tensor, taps: tuple[int, int], options: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """(B, pixels, depth in (tap, channel)) and how many rows and columns of pixels that is."""
    pads, stride, dilation = (
        pads_of(options.get("padding", 0)),
        pair(options.get("stride", 1)),
        pair(options.get("dilation", 1)),
    )
    B, C, *size = x.shape
    columns = F.unfold(F.pad(x.float(), pads), taps, dilation=dilation, stride=stride)
    rows = columns.view(B, C, taps[0] * taps[1], -1).permute(0, 3, 2, 1).flatten(2).to(x.dtype)
    return rows, out_size((size[0], size[1]), taps, stride, pads, dilation)


def gathered(x: Tensor, w: Tensor, bias: Tensor | None, precision: str | None, **options: Any) -> Tensor:
    """What conv2d computes, by ops.linear."""
    if (concat := options.get("concat")) is not None:
        x = torch.cat([x, concat], dim=1)
    if (factor := options.get("upsample", 1)) > 1:
        x = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows, size = patches(x, (w.shape[2], w.shape[3]), options)
    packed = pack_linear(w.movedim(1, -1).flatten(1), precision=precision)
    each = []
    for b, patch in enumerate(rows):
        some: dict[str, Any] = {"act": options.get("act", "none")}
        if (residual := options.get("residual")) is not None:
            some["residual"] = residual[b].flatten(1).t().contiguous()
        added = options["channel_bias"][b] if "channel_bias" in options else bias
        each.append(linear(patch.contiguous(), packed, added, **some).t().view(-1, *size))
    return torch.stack(each)


SHAPES: list[tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]] = [
    *(((2, 64, 5, width), 48, (3, 3), {"padding": 1}) for width in (9, 15, 16, 17, 31, 32, 33, 40)),
    *(((2, channels, 3, 33), 80, (3, 3), {"padding": 1}) for channels in (32, 64, 96, 320)),
    *(((1, 96, 4, 18), columns, (3, 3), {}) for columns in (16, 17, 33, 64, 80)),
    *(((2, 64, 7, width), 33, (3, 3), {"padding": 1, "stride": 2}) for width in (32, 33, 65, 80)),
    ((2, 64, 9, 50), 40, (3, 3), {"padding": (0, 1, 0, 1), "stride": (1, 3)}),
    ((2, 64, 9, 50), 40, (3, 3), {"padding": (1, 0, 2, 3), "stride": (3, 1)}),
    ((2, 32, 9, 33), 40, (3, 3), {"padding": 2, "dilation": 2}),
    ((2, 96, 11, 37), 17, (3, 3), {"padding": (0, 4), "dilation": (3, 2), "stride": 2}),
    ((2, 64, 3, 33), 32, (1, 3), {"padding": (0, 1)}),
    ((2, 64, 6, 33), 32, (3, 1), {"padding": (1, 0)}),
    ((1, 64, 7, 40), 48, (5, 5), {"padding": 2}),
    ((2, 32, 2, 14), 17, (3, 3), {"padding": 4}),  # patches that lie wholly beside the image
    ((1, 64, 40, 70), 48, (3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("shape", "columns", "taps", "options"), SHAPES, ids=str)
def test_bits_of_gathered_patches(
    level: str,
    product: str,
    shape: tuple[int, ...],
    columns: int,
    taps: tuple[int, int],
    options: dict[str, Any],
) -> None:
    dtype, precision = PRODUCTS[product], precision_of(product)
    x, bias = nhwc(*shape).to(dtype), randn(columns, seed=1).to(dtype)
    w = randn(columns, shape[1], *taps, seed=2).to(dtype)
    with native.force_isa(level), use_backend("native"):
        packed = pack_conv2d(w, precision=precision)
        got = conv2d(x, packed, bias, **options)
        assert torch.equal(got, gathered(x, w, bias, precision, **options))
        assert torch.equal(conv2d(x[-1:], packed, bias, **options), got[-1:])
        for threads in (2, 7):
            with native.use_threads(threads):
                assert torch.equal(conv2d(x, packed, bias, **options), got)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "options",
    [
        {"concat": nhwc(3, 32, 6, 33, seed=3)},
        {"concat": nhwc(3, 55, 6, 33, seed=3)},  # the seam lies within a line
        {"upsample": 2},
        {"upsample": 3, "stride": 2},
        {"act": "silu", "channel_bias": randn(3, 40, seed=4), "residual": nhwc(3, 40, 6, 33, seed=5)},
    ],
    ids=["concat", "seam", "upsample", "tripled", "epilogue"],
)
def test_neighbours_of_a_unet(level: str, product: str, options: dict[str, Any]) -> None:
    dtype, precision = PRODUCTS[product], precision_of(product)
    channels = 96 - options["concat"].shape[1] if "concat" in options else 64
    moved = {key: v.to(dtype) if isinstance(v, Tensor) else v for key, v in options.items()}
    x, w = nhwc(3, channels, 6, 33).to(dtype), randn(40, 96 if "concat" in options else 64, 3, 3, seed=1)
    with native.force_isa(level), use_backend("native"):
        packed = pack_conv2d(w.to(dtype), precision=precision)
        got = conv2d(x, packed, padding=1, **moved)
        assert torch.equal(got, gathered(x, w.to(dtype), None, precision, padding=1, **moved))


def test_a_sliced_image_and_groups(level: str) -> None:
    x, w = nhwc(2, 144, 8, 37).bfloat16()[:, 8:136, ::2, 1:], randn(64, 64, 3, 3, seed=1).bfloat16()
    with native.force_isa(level), use_backend("native"):
        got = conv2d(x, pack_conv2d(w, groups=2), padding=1, groups=2)
        for half, columns in zip(x.chunk(2, 1), zip(w.chunk(2), got.chunk(2, 1), strict=True), strict=True):
            assert torch.equal(columns[1], gathered(half, columns[0], None, None, padding=1))


def test_one_axis(level: str) -> None:
    x, w = randn(2, 64, 150).bfloat16(), randn(33, 64, 7, seed=1).bfloat16()
    for options in ({"padding": 3}, {"padding": 9, "dilation": 3}, {"stride": 2}):
        with native.force_isa(level), use_backend("native"):
            got = conv1d(x, pack_conv1d(w), **options)
            flat = {key: (0, value) if key == "padding" else (1, value) for key, value in options.items()}
            assert torch.equal(got[:, :, None], gathered(x[:, :, None], w[:, :, None], None, None, **flat))


def test_integers_are_exact(level: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (3, 64, 5, 35), generator=g).float()
    w = torch.randint(-2, 3, (48, 64, 3, 3), generator=g).float()
    truth = F.conv2d(x, w, padding=1)
    with native.force_isa(level), use_backend("native"):
        for precision in ("medium", "high"):
            assert torch.equal(conv2d(x, pack_conv2d(w, precision=precision), padding=1), truth)


def test_nothing_is_written_beside_the_result(level: str) -> None:
    for width, columns in ((17, 33), (40, 48), (15, 16)):
        x, w = nhwc(2, 32, 4, width).bfloat16(), randn(columns, 32, 3, 3, seed=1).bfloat16()
        guarded = torch.full((4, 4, width, columns), 7.0).bfloat16()
        with native.force_isa(level):
            packed = pack_conv2d(w)
            assert packed.data is not None
            _native.conv(
                inputs=[[x.data_ptr(), 32, x.stride(0), x.stride(2), x.stride(3)]],
                weight=packed.data.data_ptr(),
                size=(2, 4, width),
                out_size=(4, width),
                taps=(3, 3),
                stride=(1, 1),
                dilation=(1, 1),
                padding=(1, 1),
                upsample=1,
                groups=1,
                place=(0, 4 * width, width, 1),
                product=PRODUCT_CODES[packed.product],
                epilogue=epilogue(guarded[1:-1].permute(0, 3, 1, 2), columns, None, "none"),
                threads=3,
            )
            assert torch.equal(guarded[1:-1].permute(0, 3, 1, 2), gathered(x, w, None, None, padding=1))
        assert torch.equal(guarded[::3], torch.full((2, 4, width, columns), 7.0).bfloat16())
