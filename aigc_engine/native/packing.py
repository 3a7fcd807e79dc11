"""Packing of weights into tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_engine import _native
from aigc_engine.geometry import PANEL
from aigc_engine.native import DTYPE_CODES, on_huge_pages, threads

# csrc/cpu/args.h: enum class Product; and csrc/cpu/product.h: depth and bytes of a right tile
PRODUCT_CODES = {"float32": 0, "bfloat16": 1, "split": 2, "int8": 3}
TILES = {"float32": (16, 1024), "bfloat16": (32, 1024), "split": (32, 2048), "int8": (64, 1024)}
ROW_CODES = {**DTYPE_CODES, torch.int8: 2}


def packed_bytes(columns: int, depth: int, product: str) -> int:
    """Size of a matrix in tiles."""
    tile_depth, tile_bytes = TILES[product]
    return -(-columns // PANEL) * -(-depth // tile_depth) * tile_bytes


def pack_rows(rows: Tensor, product: str) -> Tensor:
    """(columns, depth) in tiles for `product`; integers already for int8."""
    rows = rows.contiguous()
    columns, depth = rows.shape
    packed = torch.empty(packed_bytes(columns, depth, product), dtype=torch.uint8)
    _native.pack_weight(
        rows.data_ptr(),
        on_huge_pages(packed).data_ptr(),
        columns,
        depth,
        ROW_CODES[rows.dtype],
        PRODUCT_CODES[product],
        threads(),
    )
    return packed
