"""Samples of `conv2d` with int8 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine.packed import PackedWeight
from aigc_engine.testing import Sample


def int8(nhwc: Callable[..., Tensor], packed: Callable[..., PackedWeight]) -> Iterator[Sample]:
    """Patches of int8: depth around a tile's 64, padding, gaps, seams, groups, scales of any size."""
    quantised = partial(packed, quantize="int8")
    same: dict[str, Any] = {"padding": 1}
    args: tuple[Any, ...]
    for C in (1, 3, 7, 8, 15, 33, 64, 65):
        args = (nhwc(2, C, 6, 7), quantised(20, C, 3, 3), nhwc(1, 20, 1, 1).flatten())
        yield Sample(f"int8_in_{C}", args, same, batch_axis=0)
        yield Sample(f"int8_out_{C}", (nhwc(2, 8, 5, 5), quantised(C, 8, 3, 3)), same, batch_axis=0)
    for k in ((1, 1), (1, 3), (7, 7)):
        args = (nhwc(2, 24, 9, 8), quantised(17, 24, *k))
        yield Sample(f"int8_kernel_{k[0]}x{k[1]}", args, batch_axis=0)
    moved = {"stride": (2, 3), "padding": (1, 2, 0, 3), "dilation": (2, 1)}
    yield Sample("int8_moved", (nhwc(2, 12, 11, 13), quantised(16, 12, 3, 3)), moved, batch_axis=0)
    beyond = {"padding": 4}
    yield Sample("int8_beyond", (nhwc(2, 64, 2, 3), quantised(17, 64, 3, 3)), beyond, batch_axis=0)
    up = {"upsample": 2, "padding": 1}
    yield Sample("int8_upsample", (nhwc(2, 32, 5, 4), quantised(32, 32, 3, 3)), up, batch_axis=0)
    both = {"concat": nhwc(2, 23, 6, 6), "padding": 1}
    yield Sample("int8_concat", (nhwc(2, 41, 6, 6), quantised(18, 64, 3, 3)), both, batch_axis=0)
    for groups in (2, 5, 10):
        args = (nhwc(2, 10, 6, 6), quantised(20, 10 // groups, 3, 3, groups))
        yield Sample(f"int8_groups_{groups}", args, {"groups": groups, "padding": 1}, batch_axis=0)
    args = (nhwc(2, 20, 6, 6), quantised(20, 1, 3, 3, 20))
    yield Sample("int8_depthwise", args, {"groups": 20, "padding": 1}, batch_axis=0)
    rest = {
        "act": "silu",
        "channel_bias": nhwc(3, 40, 1, 1)[:, :, 0, 0],
        "residual": nhwc(3, 40, 6, 6),
        "padding": 1,
    }
    args = (nhwc(3, 48, 6, 6), quantised(40, 48, 3, 3), nhwc(1, 40, 1, 1).flatten())
    yield Sample("int8_epilogue", args, rest, batch_axis=0)
    yield Sample("int8_chunks", (nhwc(2, 260, 7, 9), quantised(35, 260, 3, 3)), same, batch_axis=0)
    scaled = nhwc(7, 12, 5, 5)
    for sample, factor in enumerate((2.0**-110, 2.0**-90, 1.0, 3.0, 0.0, 2.0**60, 1e-40)):
        scaled[sample] *= factor
    yield Sample("int8_scales", (scaled, quantised(24, 12, 3, 3)), same, batch_axis=0)
    odd = nhwc(2, 12, 6, 6)
    odd[0, 3, 0, 0], odd[0, 5, 5, 2], odd[1, 0, 2, 2] = torch.nan, torch.inf, -torch.inf
    yield Sample(
        "int8_not_finite", (odd, quantised(24, 12, 3, 3)), {"padding": 1, "act": "silu"}, batch_axis=0
    )
