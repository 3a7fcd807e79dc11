"""What a caller of `accelerate` can choose."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from aigc_engine.ops.packing import QUANTIZED
from aigc_engine.packed import PRECISIONS

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Options:
    """The arguments of `accelerate` that hold for every call, as its docstring says.

    Raises:
        TypeError: another dtype.
        ValueError: unknown precision or quantize, or no folder to offload to.
    """

    dtype: torch.dtype | None = None
    precision: str | None = None
    quantize: str | None = None
    offload: str | os.PathLike[str] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise TypeError(f"accelerate: dtype {self.dtype!r}, expected one of {list(DTYPES)}, or None")
        for name, among in (("precision", PRECISIONS), ("quantize", QUANTIZED)):
            value = getattr(self, name)
            if value is not None and value not in among:
                raise ValueError(f"accelerate: {name} {value!r}, expected one of {list(among)}, or None")
        if self.offload is not None and not os.path.isdir(self.offload):
            raise ValueError(f"accelerate: offload {self.offload!r}, expected a folder; create it")
