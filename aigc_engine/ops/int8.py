"""int8 by rows: each row of integers up to 127 in magnitude, times a scale of its own.

The arithmetic is float32 whatever the dtype of the rest, so that the integers are the same on every backend
and in a float64 reference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine.geometry import out_size

LEVELS = 127
MOST_DEPTH = 2**17  # 128 * 127 * 2^17 fits int32
FAINTEST = 2.0**-100  # csrc/cpu/pack.h: rows that are smaller all along count as zero, 1 / scale stays finite


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers q in float32, x's shape, and scales s (..., 1): x is about q s.

    s = max|x| / 127 and q = x (1 / s) rounded to even at ties. Zero rows have s = 0, rows with a NaN or an
    infinity s = NaN.
    """
    x = x.float()
    most = x.abs().amax(dim=-1, keepdim=True)
    scales = torch.where(most < FAINTEST, 0.0, most / LEVELS)
    scales = torch.where(most.isfinite(), scales, torch.nan)
    inverse = torch.where(scales > 0.0, 1.0 / scales, 0.0)
    return (x * inverse).round(), scales


def relative_error(given: list[Tensor], found: list[tuple[Tensor, Tensor]]) -> float:
    """Frobenius norm of x - q s over that of x, of several x together; 0 where they are 0."""
    errors = [(q * scales - x.float()).norm().item() for x, (q, scales) in zip(given, found, strict=True)]
    norm = math.hypot(*(x.float().norm().item() for x in given))
    return math.hypot(*errors) / norm if norm else 0.0


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) times weight (N, K) transposed, both quantised by rows: the exact sums of integers, scaled.

    Returns:
        (..., N) float32, float64 where x is; sums are rounded to it.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    (left, rows), (right, columns) = quantise(x), quantise(weight)
    return F.linear(left.to(dtype), right.to(dtype)) * rows.to(dtype) * columns.to(dtype).squeeze(-1)


def patch_product(
    x: Tensor, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:
    """Convolution of x (B, C, H, W), already padded, with weight (O, C / groups, kH, kW).

    A row is the patch under an output pixel, in the channels of one group: a scale for each.

    Returns:
        (B, O, H', W') float32, float64 where x is.
    """
    taps = weight.shape[2:]
    patches = F.unfold(x, tuple(taps), dilation, 0, stride).unflatten(1, (groups, -1))
    rows, columns = patches.permute(1, 0, 3, 2), weight.flatten(1).chunk(groups)
    sums = torch.cat([product(row, column) for row, column in zip(rows, columns, strict=True)], dim=-1)
    return sums.transpose(1, 2).unflatten(2, out_size(x.shape[2:], taps, stride, (0, 0, 0, 0), dilation))


def check(op: str, weight: Tensor, depth: int) -> None:
    """`weight` can be quantised and its sums of `depth` products fit int32."""
    if depth > MOST_DEPTH:
        raise ValueError(
            f"{op}: weight shape {tuple(weight.shape)}, expected a depth of at most {MOST_DEPTH} for "
            f"quantize 'int8', {depth} may overflow int32 sums; split it"
        )
    if not weight.isfinite().all():
        raise ValueError(f"{op}: weight has non-finite values, expected finite ones for quantize 'int8'")
