// Tiles of strided tensors in and out of contiguous floats: rows copied, repeated or transposed.
#pragma once

#include "cpu/strided.h"

namespace aigc::AIGC_ISA {

// `count` contiguous elements; a vector of them when there's one.
template <class From, class To>
AIGC_INLINE void copy_row(const From* from, To* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) put(to + i, to_float(from[i]));
}

AIGC_INLINE void copy_row(const float* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

typedef float Quad __attribute__((vector_size(16)));

AIGC_INLINE Quad load_quad(const float* p) {
  Quad v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

AIGC_INLINE Quad load_quad(const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(8)));
  typedef uint32_t Words __attribute__((vector_size(16)));
  Halves half;
  std::memcpy(&half, p, sizeof half);
  return Quad(__builtin_convertvector(half, Words) << 16);
}

// Four rows of four floats become four columns. Sixteen elements in eight shuffles, on every level.
AIGC_INLINE void transpose_quads(Quad (&q)[4]) {
  const Quad low01 = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5);
  const Quad high01 = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7);
  const Quad low23 = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5);
  const Quad high23 = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
  q[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  q[1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  q[2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  q[3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// to[row, column] = from[row + column * stride]: each of four columns is read along its rows, whole cache
// lines at a time.
template <class T>
AIGC_INLINE void transpose_tile(const T* from, int64_t stride, float* to, int64_t rows, int64_t columns) {
  int64_t c = 0;
  for (; c + 4 <= columns; c += 4) {
    const T* source = from + c * stride;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      Quad q[4];
      for (int k = 0; k < 4; ++k) q[k] = load_quad(source + k * stride + r);
      transpose_quads(q);
      for (int k = 0; k < 4; ++k) std::memcpy(to + (r + k) * columns + c, &q[k], sizeof(Quad));
    }
    for (; r < rows; ++r)
      for (int k = 0; k < 4; ++k) to[r * columns + c + k] = to_float(source[k * stride + r]);
  }
  for (; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) to[r * columns + c] = to_float(from[c * stride + r]);
}

// to[row, column] = from[row * row_stride + column * column_stride].
template <class T>
AIGC_INLINE void read_tile(const T* from, int64_t row_stride, int64_t column_stride, float* to, int64_t rows,
                           int64_t columns) {
  if (column_stride != 0 && column_stride != 1 && row_stride == 1)
    return transpose_tile(from, column_stride, to, rows, columns);
  for (int64_t r = 0; r < rows; ++r, from += row_stride, to += columns) {
    if (column_stride == 1) {
      copy_row(from, to, columns);
    } else {
      for (int64_t c = 0; c < columns; ++c) to[c] = to_float(from[c * column_stride]);
    }
  }
}

template <class T>
AIGC_INLINE void write_tile(const float* from, T* to, int64_t row_stride, int64_t column_stride, int64_t rows,
                            int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, from += columns, to += row_stride) {
    if (column_stride == 1) {
      copy_row(from, to, columns);
    } else {
      for (int64_t c = 0; c < columns; ++c) put(to + c * column_stride, from[c]);
    }
  }
}

}  // namespace aigc::AIGC_ISA
