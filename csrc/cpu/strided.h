// Tensors of any strides, walked in tiles of rows and columns. Axes are put in the order of the result's
// strides and joined where every tensor allows it, so that most calls become one long row.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

constexpr int64_t kTile = 1024;  // elements: 4 KiB of floats, a few of which fit the L1 cache
// Of tiles that are transposed: a cache line or two of either side.
constexpr int64_t kSquare = 32;

AIGC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
AIGC_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
AIGC_INLINE int64_t blocks_of(int64_t count, int64_t block) { return (count + block - 1) / block; }

// Tensor 0 is the result. The last axis is that of a tile's columns; `row_axis` is that of its rows.
template <int kTensors>
struct Walk {
  int tensors, rank, row_axis;
  int64_t shape[kMaxRank];
  int64_t strides[kTensors][kMaxRank];
  int64_t tile_rows, tile_columns, tiles;
  int64_t blocks[kMaxRank];  // tiles along each axis

  AIGC_MEMBER void add_axis(int64_t size, const int64_t* of_tensors) {
    shape[rank] = size;
    for (int t = 0; t < tensors; ++t) strides[t][rank] = of_tensors[t];
    ++rank;
  }

  // Moves the axes of smaller strides of the result further in.
  AIGC_MEMBER void sort() {
    for (int i = 1; i < rank; ++i)
      for (int j = i; j > 0 && strides[0][j - 1] < strides[0][j]; --j) {
        swap(shape[j - 1], shape[j]);
        for (int t = 0; t < tensors; ++t) swap(strides[t][j - 1], strides[t][j]);
      }
  }

  // Joins neighbouring axes that lie in every tensor as one.
  AIGC_MEMBER void join() {
    int last = 0;
    for (int axis = 1; axis < rank; ++axis) {
      bool joined = true;
      for (int t = 0; t < tensors; ++t) joined &= strides[t][last] == strides[t][axis] * shape[axis];
      if (joined) {
        shape[last] *= shape[axis];
      } else {
        shape[++last] = shape[axis];
      }
      for (int t = 0; t < tensors; ++t) strides[t][last] = strides[t][axis];
    }
    rank = last + 1;
  }

  // Rows are the next axis; where a tensor's columns lie apart but another of its axes is contiguous, that.
  AIGC_MEMBER void cut() {
    const int columns = rank - 1;
    row_axis = rank - 2;
    bool square = false;
    for (int t = 1; t < tensors && !square; ++t) {
      if (strides[t][columns] == 0 || strides[t][columns] == 1) continue;
      for (int axis = 0; axis < columns; ++axis)
        if (strides[t][axis] == 1) row_axis = axis, square = true;
    }
    const int64_t width = shape[columns], height = row_axis < 0 ? 1 : shape[row_axis];
    if (square) {
      tile_columns = smaller(width, larger(kSquare, kTile / height));
      tile_rows = smaller(height, kTile / tile_columns);
    } else {
      // Even blocks of whole vectors (a short rest would cost as much as a block), and rows that make some.
      tile_columns = smaller(width, blocks_of(blocks_of(width, blocks_of(width, kTile)), kLanes) * kLanes);
      tile_rows = larger(1, smaller(height, kTile / tile_columns));
      const int64_t whole = kLanes / smaller(kLanes, tile_columns & -tile_columns);
      if (tile_rows > whole) tile_rows -= tile_rows % whole;
    }
    tiles = 1;
    for (int axis = 0; axis < rank; ++axis) {
      const int64_t step = axis == columns ? tile_columns : axis == row_axis ? tile_rows : 1;
      tiles *= blocks[axis] = blocks_of(shape[axis], step);
    }
  }

  template <class T>
  AIGC_INLINE void swap(T& a, T& b) {
    const T kept = a;
    a = b, b = kept;
  }
};

// Where a tile lies: offsets in elements.
template <int kTensors>
struct Tile {
  int64_t rows, columns;
  int64_t offsets[kTensors];
};

template <int kTensors>
AIGC_INLINE void locate(const Walk<kTensors>& walk, int64_t index, Tile<kTensors>& tile) {
  for (int t = 0; t < walk.tensors; ++t) tile.offsets[t] = 0;
  tile.rows = tile.columns = 1;
  for (int axis = walk.rank - 1; axis >= 0; --axis) {
    const int64_t block = index % walk.blocks[axis];
    index /= walk.blocks[axis];
    const bool is_columns = axis == walk.rank - 1, is_rows = axis == walk.row_axis;
    const int64_t step = is_columns ? walk.tile_columns : is_rows ? walk.tile_rows : 1;
    const int64_t first = block * step, count = smaller(step, walk.shape[axis] - first);
    if (is_columns) tile.columns = count;
    if (is_rows) tile.rows = count;
    for (int t = 0; t < walk.tensors; ++t) tile.offsets[t] += first * walk.strides[t][axis];
  }
}

}  // namespace aigc::AIGC_ISA
