"""Weights laid out once for the native kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aigc_engine import capability
from aigc_engine.joint import Joint, joined

PRECISIONS = ("highest", "high", "medium")
_precision: ContextVar[str | None] = ContextVar("aigc_engine_precision", default=None)


@dataclass(frozen=True)
class PackedWeight:
    """A weight in tiles, made by `pack_linear` and its kin, and used as often as wanted.

    Args:
        kind: the op that it is for, for example "linear".
        source: the weight as it was given; the reference runs on it.
        version: the source's version when it was packed; a later one means it was changed in place.
        product: how its products are made: "float32", "bfloat16", "split" (float32 in two bfloat16 terms) or
            "int8".
        data: the tiles, or None where the native module can't serve the source's device.
        groups: of a convolution.
        stride: of a transposed convolution, whose taps are packed by their remainders.
        scales: (N,) float32, what each output channel's integers are multiplied by (of several matrices, each
            begins where a panel does); None unless int8.
        column_sums: (N,) int32, each output channel's sum of integers; None unless int8.
        error: norm of what quantising took from the weight over the weight's norm; 0 unless int8.
    """

    kind: str
    source: Tensor
    version: int
    product: str
    data: Tensor | None
    groups: int = 1
    stride: tuple[int, ...] = ()
    scales: Tensor | None = None
    column_sums: Tensor | None = None
    error: float = 0.0

    @property
    def shape(self) -> torch.Size:
        """The source's shape."""
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        """The source's dtype."""
        return self.source.dtype

    def holds(self, weight: Tensor) -> bool:
        """Whether this is `weight` as it is now, for the ISA level that runs now."""
        same = self.source.data_ptr() == weight.data_ptr() and self.version == version_of(weight)
        return same and self.dtype == weight.dtype and self.product == product_of(self.kind, weight, None)

    @functools.cached_property
    def winograd(self) -> Tensor:
        """Of a float32 convolution of 3 x 3 pixels: G w G' (csrc/cpu/winograd.cpp), made at first need."""
        from aigc_engine.native.packing import pack_rows

        w = self.source.double()
        if w.ndim == 5:  # frames beside each other are a pixel's channels
            w = w.transpose(1, 2).flatten(1, 2)
        g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
        matrices = (g @ w @ g.T).float().permute(2, 3, 0, 1).flatten(0, 1)
        return torch.cat([pack_rows(matrix, self.product) for matrix in matrices])

    @functools.cached_property
    def by_taps(self) -> Tensor:
        """Of a transposed convolution: each tap's matrix, as for a stride of the kernel's size.

        That is all there is of a single pixel, whatever the stride; made when first needed.
        """
        from aigc_engine.native.packing import pack_rows

        matrices = self.source.permute(2, 3, 1, 0).flatten(0, 1)
        return torch.cat([pack_rows(matrix, self.product) for matrix in matrices])

    @functools.cached_property
    def _joined(self) -> dict[Joint, Tensor]:
        return {}

    def joined(self, joint: Joint) -> Tensor:
        """Tiles for blocks of outputs, made when first needed."""
        from aigc_engine.native.packing import pack_rows

        if joint not in self._joined:
            self._joined[joint] = pack_rows(joined(self.source, self.kind, joint), self.product)
        return self._joined[joint]

    @property
    def packs_again(self) -> bool:
        """Whether the plain weight may be read later, to be laid out in another way."""
        return self.kind != "linear"

    def renewed(self, new: PackedWeight) -> PackedWeight:
        """`new`, a weight of the same layout, with its tiles written to where this one's are."""
        kept: dict[str, Any] = {}
        for name in ("data", "scales", "column_sums"):
            mine, other = getattr(self, name), getattr(new, name)
            kept[name] = None if mine is None or other is None else mine.copy_(other)
        renewed = dataclasses.replace(new, **kept)
        for name in ("winograd", "by_taps"):
            if name in self.__dict__:
                renewed.__dict__[name] = self.__dict__[name].copy_(getattr(new, name))
        renewed._joined.update({joint: old.copy_(new.joined(joint)) for joint, old in self._joined.items()})
        return renewed

    def __repr__(self) -> str:
        return f"PackedWeight({self.kind}, {tuple(self.shape)}, {self.dtype}, {self.product})"


def version_of(weight: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode don't."""
    return 0 if weight.is_inference() else weight._version


def product_of(op: str, weight: Tensor, precision: str | None) -> str:
    """How products with this weight are made on the level that runs now.

    Raises:
        TypeError: the weight is neither float32 nor bfloat16.
        ValueError: unknown precision.
    """
    if weight.dtype == torch.bfloat16:
        return "bfloat16"
    if weight.dtype != torch.float32:
        raise TypeError(f"{op}: weight {weight.dtype}, expected torch.float32 or torch.bfloat16; convert it")
    precision = _precision.get() if precision is None else precision
    precision = torch.get_float32_matmul_precision() if precision is None else precision
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision {precision!r}, expected one of {list(PRECISIONS)}, or None")
    if capability.native_missing() is not None:
        return "float32"
    from aigc_engine import native

    has_tiles, fast_dots = native.products()
    if precision == "high" and has_tiles:
        return "split"
    return "bfloat16" if precision == "medium" and fast_dots else "float32"


@contextlib.contextmanager
def use_precision(precision: str | None) -> Iterator[None]:
    """What a precision of None means in this context; None: torch.get_float32_matmul_precision()."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def tensor_of(weight: Tensor | PackedWeight) -> Tensor:
    """The plain weight."""
    return weight.source if isinstance(weight, PackedWeight) else weight
