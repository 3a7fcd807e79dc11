"""Sizes of convolutions: what an op checks and its kernels are told."""

from __future__ import annotations

from collections.abc import Sequence

PANEL = 16  # columns of a packed weight that lie side by side (csrc/cpu/tile.h)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both axes, or one for each (rows, columns)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    """One number for all axes, or one for each (frames, rows, columns)."""
    return (value,) * 3 if isinstance(value, int) else (value[0], value[1], value[2])


def is_depthwise(shape: Sequence[int], groups: int) -> bool:
    """Whether a weight (O, C / groups, ...) has one output for each of several channels."""
    return shape[1] == 1 and groups == shape[0] > 1


def pads_of(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of one number, of (rows, columns), or of the four themselves."""
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return padding[1], padding[1], padding[0], padding[0]
    left, right, top, bottom = padding
    return left, right, top, bottom


def out_size(
    size: tuple[int, int],
    taps: Sequence[int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Rows and columns of the result."""
    left, right, top, bottom = pads
    reach = (dilation[0] * (taps[0] - 1) + 1, dilation[1] * (taps[1] - 1) + 1)
    return (size[0] + top + bottom - reach[0]) // stride[0] + 1, (
        size[1] + left + right - reach[1]
    ) // stride[1] + 1


def ends_of_volume(padding: int | Sequence[int]) -> tuple[int, int, int, int, int, int]:
    """(left, right, top, bottom, before, after) of a number, of (frames, rows, columns), or themselves."""
    if not isinstance(padding, int) and len(padding) == 6:
        left, right, top, bottom, before, after = padding
        return left, right, top, bottom, before, after
    frames, rows, columns = triple(padding)
    return columns, columns, rows, rows, frames, frames


def out_volume(
    size: Sequence[int], taps: Sequence[int], stride: tuple[int, int, int], ends: tuple[int, ...]
) -> tuple[int, int, int]:
    """Frames, rows and columns of the result."""
    rows, columns = out_size((size[1], size[2]), taps[1:], stride[1:], ends[:4], (1, 1))  # type: ignore[arg-type]
    return out_length(size[0], taps[0], stride[0], ends[4:], 1), rows, columns


def ends_of(padding: int | Sequence[int]) -> tuple[int, int]:
    """(left, right) of one number or of the two themselves."""
    return (padding, padding) if isinstance(padding, int) else (padding[0], padding[1])


def out_length(length: int, taps: int, stride: int, padding: int | Sequence[int], dilation: int) -> int:
    """Samples of the result."""
    return (length + sum(ends_of(padding)) - dilation * (taps - 1) - 1) // stride + 1


def taps_of(taps: int, stride: int, remainder: int) -> range:
    """Taps that reach output positions of one remainder, last first: in order of the input they read.

    Output o takes input i by tap k where o + padding = stride i + k, so k = o + padding modulo stride.
    """
    return range(remainder, taps, stride)[::-1]


def transposed_size(
    size: Sequence[int],
    taps: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
) -> tuple[int, int]:
    """Rows and columns of the result."""
    s, p, o = pair(stride), pair(padding), pair(output_padding)
    rows, columns = ((size[i] - 1) * s[i] - 2 * p[i] + taps[i] + o[i] for i in (0, 1))
    return rows, columns


def transposed_length(length: int, taps: int, stride: int, padding: int, output_padding: int) -> int:
    """Samples of the result."""
    return (length - 1) * stride - 2 * padding + taps + output_padding
