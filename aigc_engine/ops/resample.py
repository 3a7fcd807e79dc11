"""Images of another size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.dispatch import op
from aigc_engine.ops import checks
from aigc_engine.testing import Sample

MODES = ("bilinear", "nearest")


def _check_resize2d(
    x: Tensor, size: Sequence[int], *, mode: str = "nearest", align_corners: bool = False
) -> None:
    checks.floating("resize2d", "x", x)
    checks.rank("resize2d", "x", x, 4, 4)
    if not isinstance(size, (list, tuple)) or not all(type(n) is int for n in size):
        raise TypeError(f"resize2d: size {size!r}, expected (height, width), two ints")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"resize2d: size {tuple(size)}, expected (height, width), each at least 1")
    checks.choice("resize2d", "mode", mode, MODES)
    if align_corners and mode == "nearest":
        raise ValueError("resize2d: align_corners with mode 'nearest', expected 'bilinear'; leave it out")
    if 0 in x.shape[2:]:
        raise ValueError(f"resize2d: x shape {tuple(x.shape)}, expected at least one pixel")


def _samples_resize2d(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    g = torch.Generator().manual_seed(0)
    nhwc = torch.channels_last

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    near = {"exact": True, "batch_axis": 0}
    sizes = [(1, 1), (2, 3), (7, 9), (14, 18), (15, 16), (17, 31), (33, 64), (5, 65), (6, 1000)]
    for size in sizes:
        for C in (1, 3, 16, 33):
            for x in (randn(2, C, 7, 9), randn(2, C, 7, 9).contiguous(memory_format=nhwc)):
                label = f"{size[0]}_{size[1]}_{C}_{x.stride(1)}"
                yield Sample(f"nearest_{label}", (x, size), **near)  # type: ignore[arg-type]
                for align in (False, True):
                    kwargs = {"mode": "bilinear", "align_corners": align}
                    yield Sample(f"bilinear_{align}_{label}", (x, size), kwargs, batch_axis=0)
    bilinear = {"mode": "bilinear"}
    for x in (randn(2, 12, 9, 10)[:, 1:9:2, 1:, 2:], randn(2, 9, 10, 12).permute(0, 3, 1, 2)[:, 2:]):
        yield Sample(f"sliced_{x.shape[1]}", (x, (11, 12)), exact=True)
        yield Sample(f"sliced_bilinear_{x.shape[1]}", (x, (11, 12)), bilinear)
    yield Sample("one_pixel", (randn(2, 5, 1, 1), (3, 4)), {"mode": "bilinear", "align_corners": True})
    yield Sample("empty", (randn(0, 5, 3, 3), (3, 4)))
    whole = torch.randint(-8, 9, (2, 20, 4, 6), generator=g).to(device, dtype)
    yield Sample("integers", (whole, (8, 12)), bilinear, exact=True)
    unet = randn(2, 640, 32, 32).contiguous(memory_format=nhwc)
    yield Sample("sd15_unet_nearest_2x", (unet, (64, 64)), bench=True)
    yield Sample("sd_vae_nearest_2x", (randn(1, 256, 128, 128), (256, 256)), bench=True)
    yield Sample("image_bilinear", (randn(1, 3, 256, 256), (224, 224)), bilinear, bench=True)
    features = randn(2, 256, 32, 32).contiguous(memory_format=nhwc)
    yield Sample("features_bilinear_2x", (features, (64, 64)), bilinear, bench=True)


def _cost_resize2d(
    x: Tensor, size: Sequence[int], *, mode: str = "nearest", align_corners: bool = False
) -> tuple[float, float]:
    """Nine operations an element where pixels are blended; x read once and the result written once."""
    count = math.prod(x.shape[:2]) * math.prod(size)
    return 9.0 * count * (mode == "bilinear"), float((x.numel() + count) * x.element_size())


@op(
    check=_check_resize2d,
    samples=_samples_resize2d,
    dtypes=checks.FLOATS,
    cost=_cost_resize2d,
)
def resize2d(x: Tensor, size: Sequence[int], *, mode: str = "nearest", align_corners: bool = False) -> Tensor:
    r"""Enlarges or reduces images to a size, as `F.interpolate(x, size, mode=mode)` does.

    .. math:: y_{ij} = x_{\lfloor i H / H' \rfloor, \lfloor j W / W' \rfloor} \quad \text{(nearest)}

    bilinear: the four pixels around (i + 1/2) H / H' - 1/2 (with aligned corners i (H - 1) / (H' - 1)), and
    the same of j, weighted by how near they are; places outside are moved to the edge.

    References:
        A. Paszke et al., "PyTorch: An Imperative Style, High-Performance Deep Learning Library", 2019,
        https://arxiv.org/abs/1912.01703 (the definition of its interpolate)

    Args:
        x: (B, C, H, W) floating; contiguous or channels-last keep their layout.
        size: (H', W') of the result.
        mode: nearest or bilinear (without antialiasing).
        align_corners: of bilinear: the centres of the corner pixels, and not their corners, stay in place.

    Returns:
        (B, C, H', W') in x's dtype.

    Precision: nearest copies: it chooses PyTorch's pixels in float32 and bfloat16. bilinear takes its places
        in float64, its weights and sums in float32: rows first, then columns; rounded once.

    Raises:
        TypeError: x isn't floating, or size isn't ints.
        ValueError: x isn't (B, C, H, W) with a pixel, size isn't two numbers >= 1, unknown mode,
            align_corners of nearest.
    """
    if mode == "nearest":
        return F.interpolate(x, size=tuple(size), mode=mode)
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners)
