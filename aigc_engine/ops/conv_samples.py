"""Samples of `conv2d` that only some of its kernels see: depthwise and int8 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_engine.ops.packing import pack_taps
from aigc_engine.packed import PackedWeight
from aigc_engine.testing import Sample


def depthwise(
    nhwc: Callable[..., Tensor], packed: Callable[..., PackedWeight], dtype: torch.dtype
) -> Iterator[Sample]:
    """groups = C = O: around a panel of 16 channels, stretches of pixels, edges, and tasks."""

    def sample(
        name: str, shape: tuple[int, ...], taps: tuple[int, int], bias: bool = False, **options: Any
    ) -> Sample:
        C, x = shape[1], nhwc(*shape)
        args = (x, packed(C, 1, *taps, C), *([nhwc(1, C, 1, 1).flatten()] if bias else []))
        # Bare ones are PyTorch's but for many taps in float32; conv1d has more of those.
        bare = dtype == torch.float32 and taps == (7, 7)
        act = {} if bare else {"act": "silu"}
        return Sample(f"depthwise_{name}", args, {"groups": C, **act, **options}, batch_axis=0)

    for C in (2, 15, 16, 17, 33, 64):
        yield sample(f"channels_{C}", (3, C, 6, 7), (3, 3), True, padding=1)
    for W in (1, 2, 15, 16, 17, 18, 19, 33, 40):
        for k in (3, 5, 7):
            yield sample(f"{k}_width_{W}", (2, 20, 4, W), (2, k), padding=(1, k // 2))
    for taps in ((1, 1), (1, 3), (5, 2), (7, 7)):
        yield sample(f"{taps[0]}x{taps[1]}", (2, 24, 9, 8), taps)
    for W in (3, 9, 22, 23, 41):
        yield sample(f"bare_width_{W}", (2, 36, 7, W), (7, 7), True, padding=3)
    yield sample("moved", (2, 20, 11, 33), (3, 3), stride=(2, 3), padding=(1, 2, 0, 3), dilation=(3, 2))
    yield sample("dilated", (2, 20, 9, 40), (3, 3), padding=2, dilation=2)
    yield sample("sparse", (2, 20, 14, 37), (2, 2), stride=4, padding=1)
    yield sample("beyond", (2, 20, 2, 3), (3, 3), padding=5)
    yield sample("upsample", (2, 33, 5, 4), (3, 3), padding=1, upsample=2)
    yield sample("tripled", (2, 20, 3, 4), (3, 3), padding=1, upsample=3, stride=2)
    yield sample("parts", (2, 300, 5, 70), (5, 5), True, padding=2)
    rest = {"act": "gelu", "channel_bias": nhwc(2, 40, 1, 1)[:, :, 0, 0], "residual": nhwc(2, 40, 6, 18)}
    yield sample("epilogue", (2, 40, 6, 18), (3, 3), True, padding=1, **rest)
    whole = nhwc(2, 20, 6, 18).mul(3).round()
    weight = pack_taps("conv2d", nhwc(20, 1, 3, 3).mul(2).round(), 20, None)
    exact = {"groups": 20, "padding": 1, "act": "relu"}
    yield Sample("depthwise_integers", (whole, weight), exact, exact=dtype == torch.float32)
    sliced = nhwc(2, 40, 8, 19)[:, 4:24, ::2, 1:]
    act = {"groups": 20, "padding": 1, "act": "relu"}
    yield Sample("depthwise_sliced", (sliced, packed(20, 1, 3, 3, 20)), act, batch_axis=0)
    yield Sample("depthwise_doubled", (nhwc(2, 20, 6, 6), packed(40, 1, 3, 3, 20)), act, batch_axis=0)


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
