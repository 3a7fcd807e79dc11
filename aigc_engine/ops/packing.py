"""What all ops with packed weights share: packing them, and looking at one that is given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_engine import capability
from aigc_engine.geometry import PANEL, is_depthwise
from aigc_engine.ops import int8
from aigc_engine.packed import PackedWeight, product_of, tensor_of, version_of

QUANTIZED = ("int8",)


def pack(
    kind: str,
    weight: Tensor,
    matrices: list[Tensor],
    precision: str | None,
    quantize: str | None = None,
    tiles: str | None = None,
    **layout: Any,
) -> PackedWeight:
    """Packs matrices (columns of the product, depth), one after the other, which hold the weight's values.

    They lie as for another product where `tiles` names one.

    Raises:
        ValueError: unknown precision or quantize; to be quantised, but not finite or too deep.
    """
    op = f"pack_{kind}"
    if quantize is not None and quantize not in QUANTIZED:
        raise ValueError(f"{op}: quantize {quantize!r}, expected one of {list(QUANTIZED)}, or None")
    product = product_of(op, weight, precision)
    matrices = [matrix.detach() for matrix in matrices]
    if quantize is not None:
        product = quantize
        int8.check(op, weight, max(matrix.shape[1] for matrix in matrices))
        matrices, quantised = _quantised(matrices)
        layout |= quantised
    data = None
    if weight.device.type == "cpu" and capability.native_missing() is None:
        from aigc_engine.native.packing import pack_rows

        packed = [pack_rows(matrix, tiles or product) for matrix in matrices]
        data = packed[0] if len(packed) == 1 else torch.cat(packed)
    return PackedWeight(kind, weight.detach(), version_of(weight), product, data, **layout)


def pack_taps(
    kind: str, weight: Tensor, groups: int, precision: str | None, quantize: str | None = None
) -> PackedWeight:
    """Packs a convolution's weight (O, C / groups, taps ...): a matrix for each group, depth (tap, channel).

    A depthwise one is a single matrix (O, taps), and float32 whatever its dtype.
    """
    matrix = weight.movedim(1, -1).flatten(1)
    if quantize is None and is_depthwise(weight.shape, groups):
        return pack(kind, weight, [matrix.float()], precision, tiles="float32", groups=groups)
    return pack(kind, weight, list(matrix.chunk(groups)), precision, quantize, groups=groups)


def _quantised(matrices: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """Matrices as int8, and what a PackedWeight says of them; kernels read both tensors by whole panels."""
    found = [int8.quantise(matrix) for matrix in matrices]
    beyond = [-len(matrix) % PANEL for matrix in matrices]

    def by_panels(columns: list[Tensor]) -> Tensor:
        padded = torch.cat([F.pad(each, (0, more)) for each, more in zip(columns, beyond, strict=True)])
        return padded[: len(padded) - beyond[-1]]

    return [q.to(torch.int8) for q, _ in found], {
        "scales": by_panels([scales.squeeze(1) for _, scales in found]),
        "column_sums": by_panels([q.sum(dim=1, dtype=torch.int32) for q, _ in found]),
        "error": int8.relative_error(matrices, found),
    }


def check_weight(op: str, kind: str, weight: object, x: Tensor) -> None:
    """`weight` is a tensor or packed for this op, unchanged since, with x's dtype and device."""
    if not isinstance(weight, (Tensor, PackedWeight)):
        raise TypeError(
            f"{op}: weight {type(weight).__name__}, expected a torch.Tensor or what pack_{kind}() makes"
        )
    plain = tensor_of(weight)
    if plain.dtype != x.dtype:
        raise TypeError(f"{op}: weight {plain.dtype}, expected {x.dtype} as x; convert one of them")
    if plain.device != x.device:
        raise ValueError(f"{op}: weight on {plain.device}, expected {x.device} as x; move one of them")
    if isinstance(weight, Tensor):
        return
    if weight.kind != kind:
        raise ValueError(f"{op}: weight packed for {weight.kind}, expected pack_{kind}(weight)")
    if version_of(weight.source) != weight.version:
        raise ValueError(f"{op}: weight changed after it was packed; pack it again with pack_{kind}(weight)")
