// Tensors of any strides, walked in tiles of rows and columns. Axes are put in the order of the result's
// strides and joined where every tensor allows it, so that most calls become one long row.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

constexpr int64_t kTile = 1024;  // elements: 4 KiB of floats, a few of which fit the L1 cache
constexpr int64_t kLong = 8192;  // of contiguous tiles that go through one step
// Of tiles that are transposed: a cache line or two of either side; where nothing else is done with them,
// runs long enough for the hardware to fetch ahead, and as many as the L2 cache has room for. Of 10 MB beyond
// the caches that took half the time.
constexpr int64_t kSquare = 32, kLongSquare = 128, kSquareTile = 32768;

// Tensor 0 is the result. The last axis is that of a tile's columns; `row_axis` is that of its rows.
template <int kTensors>
struct Walk {
  int tensors, rank, row_axis;
  bool square;  // the columns of some tensor lie apart, and its rows are contiguous
  int64_t shape[kMaxRank];
  int64_t strides[kTensors][kMaxRank];
  int64_t tile_rows, tile_columns, tiles;
  int64_t room;              // elements that a copied tile takes at most
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
  // `in_place`: tiles go through one step at most, so that they needn't stay in the L1 cache.
  AIGC_MEMBER void cut(bool in_place) {
    const int columns = rank - 1;
    row_axis = rank - 2;
    room = kTile;
    square = false;
    bool apart = strides[0][columns] != 1;
    for (int t = 1; t < tensors && !square; ++t) {
      if (strides[t][columns] == 0 || strides[t][columns] == 1) continue;
      apart = true;
      for (int axis = 0; axis < columns; ++axis)
        if (strides[t][axis] == 1) row_axis = axis, square = true;
    }
    const int64_t width = shape[columns], height = row_axis < 0 ? 1 : shape[row_axis];
    if (square) {
      if (in_place) room = kSquareTile;
      tile_columns = smaller(width, larger(in_place ? kLongSquare : kSquare, room / height));
      tile_rows = smaller(height, room / tile_columns);
    } else {
      // Even blocks of whole vectors (a short rest would cost as much as a block), and rows that make some.
      const int64_t longest = in_place && !apart && width > kTile ? kLong : kTile;
      tile_columns = smaller(width, blocks_of(blocks_of(width, blocks_of(width, longest)), kLanes) * kLanes);
      tile_rows = larger(1, smaller(height, kTile / tile_columns));
      const int64_t whole = kLanes / smaller(kLanes, tile_columns & -tile_columns);
      if (tile_rows > whole) tile_rows -= tile_rows % whole;
    }
    tiles = 1;
    for (int axis = 0; axis < rank; ++axis) tiles *= blocks[axis] = blocks_of(shape[axis], step(axis));
  }

  // Elements from a tile to the next along an axis.
  AIGC_MEMBER int64_t step(int axis) const {
    return axis == rank - 1 ? tile_columns : axis == row_axis ? tile_rows : 1;
  }

  template <class T>
  AIGC_INLINE void swap(T& a, T& b) {
    const T kept = a;
    a = b, b = kept;
  }
};

// Where a tile lies, and the way to the next: offsets in elements.
template <int kTensors>
struct Tile {
  int64_t rows, columns;
  int64_t offsets[kTensors];
  int64_t block[kMaxRank];

  AIGC_MEMBER Tile(const Walk<kTensors>& walk, int64_t index) {
    for (int t = 0; t < walk.tensors; ++t) offsets[t] = 0;
    for (int axis = walk.rank - 1; axis >= 0; --axis) {
      block[axis] = index % walk.blocks[axis];
      index /= walk.blocks[axis];
      move(walk, axis, block[axis]);
    }
    measure(walk);
  }

  AIGC_MEMBER void next(const Walk<kTensors>& walk) {
    for (int axis = walk.rank - 1; axis >= 0; --axis) {
      if (++block[axis] < walk.blocks[axis]) {
        move(walk, axis, 1);
        break;
      }
      move(walk, axis, 1 - block[axis]);
      block[axis] = 0;
    }
    measure(walk);
  }

 private:
  AIGC_MEMBER void move(const Walk<kTensors>& walk, int axis, int64_t blocks) {
    const int64_t elements = blocks * walk.step(axis);
    for (int t = 0; t < walk.tensors; ++t) offsets[t] += elements * walk.strides[t][axis];
  }

  AIGC_MEMBER void measure(const Walk<kTensors>& walk) {
    const int last = walk.rank - 1, row = walk.row_axis;
    columns = smaller(walk.tile_columns, walk.shape[last] - block[last] * walk.tile_columns);
    rows = row < 0 ? 1 : smaller(walk.tile_rows, walk.shape[row] - block[row] * walk.tile_rows);
  }
};

}  // namespace aigc::AIGC_ISA
