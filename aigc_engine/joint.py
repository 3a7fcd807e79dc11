"""Convolutions to few channels: neighbouring outputs side by side as the columns of one product.

A product's columns come in panels of 16, most of them empty where a layer makes an image of 1 or 3 channels.
A block of outputs reads little more input than one of them, so that all of a block's outputs, each with
zeros for the taps that aren't its own, are one convolution that strides from block to block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from aigc_engine.geometry import PANEL

GAIN = 0.75  # of the products, at most


@dataclass(frozen=True)
class Axis:
    """One axis of a joint convolution; output `block` Y + q reads input `stride` Y - `padding` + e by a tap.

    Args:
        taps: e runs over so many.
        tap: (a, b, c): the tap is a q + b + c e of the layer's weight, or none if it has no such one.
    """

    block: int
    stride: int
    padding: int
    taps: int
    tap: tuple[int, int, int]

    def taps_of(self, q: int, kernel: int) -> list[tuple[int, int]]:
        """(e, tap) of output q."""
        a, b, c = self.tap
        found = [(e, a * q + b + c * e) for e in range(self.taps)]
        return [(e, tap) for e, tap in found if 0 <= tap < kernel]


@dataclass(frozen=True)
class Joint:
    """A convolution of blocks of outputs, rows and columns."""

    rows: Axis
    columns: Axis

    @property
    def block(self) -> tuple[int, int]:
        """Outputs of a block."""
        return self.rows.block, self.columns.block

    def matrix(self, weight: Tensor) -> Tensor:
        """(block outputs x O, taps x C) of a weight (kH, kW, C, O)."""
        kernel_rows, kernel_columns, channels, outputs = weight.shape
        joint = weight.new_zeros(*self.block, outputs, self.rows.taps, self.columns.taps, channels)
        for y in range(self.rows.block):
            for e, tap_y in self.rows.taps_of(y, kernel_rows):
                for x in range(self.columns.block):
                    for f, tap_x in self.columns.taps_of(x, kernel_columns):
                        joint[y, x, :, e, f] = weight[tap_y, tap_x].T
        return joint.flatten(0, 2).flatten(1)


def of_conv(kernel: Sequence[int], pads: Sequence[int], size: Sequence[int], outputs: int) -> Joint | None:
    """How a convolution of stride 1 is best joined; None where it isn't worth it.

    Args:
        kernel, pads, size: (rows, columns) of the weight, of the padding above and left, and of the result.
        outputs: channels.
    """
    best, least = None, GAIN * kernel[0] * kernel[1]
    sides = [[side for side in (1, 2, 4, 8, 16) if whole % side == 0] for whole in size]
    for height in sides[0]:
        for width in sides[1]:
            taps = kernel[0] + height - 1, kernel[1] + width - 1
            cost = taps[0] * taps[1] / (height * width)
            if height * width * outputs > PANEL or cost >= least:
                continue
            axes = [
                Axis(side, side, pad, reach, (-1, 0, 1))
                for side, pad, reach in zip((height, width), pads, taps, strict=True)
            ]
            best, least = Joint(*axes), cost
    return best


def of_transposed(
    kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], size: Sequence[int], outputs: int
) -> Joint | None:
    """The same of a transposed convolution, whose blocks are as large as its stride."""
    if any(whole % stride for whole, stride in zip(size, strides, strict=True)):
        return None
    axes = [_transposed_axis(*values) for values in zip(kernel, strides, pads, strict=True)]
    few = strides[0] * strides[1] * outputs <= PANEL
    return Joint(*axes) if few and axes[0].taps * axes[1].taps < GAIN * kernel[0] * kernel[1] else None


def _transposed_axis(kernel: int, stride: int, padding: int) -> Axis:
    # Output stride Y + q takes input Y + (q + padding - tap) / stride where that is whole.
    steps = [q + padding - tap for q in range(stride) for tap in range(kernel)]
    reads = [step // stride for step in steps if step % stride == 0]
    first = min(reads)
    return Axis(stride, 1, -first, max(reads) - first + 1, (1, padding - stride * first, -stride))


def joined(weight: Tensor, kind: str, joint: Joint) -> Tensor:
    """(columns, depth) of a weight of `pack_<kind>`."""
    weight = weight if weight.ndim == 4 else weight.unsqueeze(2)
    axes = (2, 3, 0, 1) if kind.startswith("conv_transpose") else (2, 3, 1, 0)
    return joint.matrix(weight.permute(axes))
