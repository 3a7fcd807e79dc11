// Into panels: what stands right in a product, in units of 4 bytes of depth of 16 columns.
#pragma once

#include "cpu/pack.h"

namespace aigc::AIGC_ISA {

constexpr int kPairDepth = BFloat16Product::kDepth;

// Depth and bytes of a right tile.
AIGC_INLINE int right_depth(Product product) {
  if (product == Product::kFloat32) return Float32Product::kDepth;
  return product == Product::kInt8 ? Int8Product::kDepth : kPairDepth;
}
AIGC_INLINE int right_bytes(Product product) {
  return product == Product::kSplit ? 2 * kTileBytes : kTileBytes;
}

// What a column's line holds in a tile, whatever the level computes with.
template <class T>
AIGC_INLINE void column_line(Product product, const T* from, int n, uint16_t* high, uint16_t* low,
                             float* whole) {
  if constexpr (std::is_same_v<T, int8_t>) {
    std::memset(whole, 0, kTileLine);
    std::memcpy(whole, from, size_t(n));
  } else {
    T elements[kPairDepth] = {};
    std::memcpy(elements, from, size_t(n) * sizeof(T));
    if (product == Product::kFloat32) {
      store(whole, load(elements));
      return;
    }
    for (int i = 0; i < kPairDepth; i += kLanes) {
      const Vec x = load(elements + i);
      if (product == Product::kSplit) {
        const Terms terms = split(x);
        store(high + i, terms.high), store(low + i, terms.low);
      } else {
        store(high + i, x);
      }
    }
  }
}

// Columns' lines, `pitch` bytes apart, to a right tile: 4 bytes of each column side by side.
inline void transpose(const char* lines, int64_t pitch, char* tile) {
#if defined(__AVX512F__)
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(lines + i * pitch);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)  // 128-bit part p of a[i + c]: element 4 p + c of lines i to i + 3
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
    }
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_si512(tile + c * kTileLine, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(tile + (4 + c) * kTileLine, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(tile + (8 + c) * kTileLine, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(tile + (12 + c) * kTileLine, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
#else
  for (int column = 0; column < kLanes; ++column)
    for (int k = 0; k < kTileRows; ++k)
      std::memcpy(tile + k * kTileLine + column * 4, lines + column * pitch + k * 4, 4);
#endif
}

// A panel whose columns are rows of memory, `stride` elements apart, as a weight's or the keys of attention.
// Missing columns and depth become zero.
template <class T>
inline void pack_columns(Product product, const T* from, int64_t stride, int columns, int64_t depth,
                         char* to) {
  const int step = right_depth(product);
  alignas(64) char lines[2][kTileBytes] = {};
  constexpr Product kAsIs = sizeof(T) == 4   ? Product::kFloat32
                            : sizeof(T) == 2 ? Product::kBFloat16
                                             : Product::kInt8;
  const bool as_is = product == kAsIs;
  for (int64_t k = 0; k < depth; k += step) {
    if (as_is && columns == kLanes && depth - k >= step) {
      transpose(reinterpret_cast<const char*>(from + k), stride * int64_t(sizeof(T)), to);
      to += kTileBytes;
      continue;
    }
    for (int column = 0; column < columns; ++column) {
      char *high = lines[0] + column * kTileLine, *low = lines[1] + column * kTileLine;
      column_line(product, from + column * stride + k, int(smaller(step, depth - k)),
                  reinterpret_cast<uint16_t*>(high), reinterpret_cast<uint16_t*>(low),
                  reinterpret_cast<float*>(high));
    }
    transpose(lines[0], kTileLine, to);
    to += kTileBytes;
    if (product != Product::kSplit) continue;
    transpose(lines[1], kTileLine, to);
    to += kTileBytes;
  }
}

// bfloat16 of two depths side by side in each lane; T is what they come from.
template <class T>
AIGC_INLINE UVec bf16_pairs(Vec even, Vec odd) {
  if constexpr (sizeof(T) == 2) return (UVec(even) >> 16) | UVec(odd);
  return (round_bf16(even) >> 16) | (round_bf16(odd) & 0xffff0000u);
}

// One tile of a panel whose depth are rows of memory, `stride` elements apart, as the values of attention.
// Missing depth and columns become zero.
template <class T>
inline void pack_depth(Product product, const T* from, int64_t stride, int columns, int depth, char* to) {
  const auto row = [&](int k) __attribute__((always_inline)) {
    if (k >= depth) return splat(0.0f);
    return columns == kLanes ? load(from + k * stride) : load_n(from + k * stride, columns);
  };
  for (int line = 0; line < kTileRows; ++line, to += kTileLine) {
    if (product == Product::kFloat32) {
      store_bits(to, row(line));
      continue;
    }
    const Vec even = row(2 * line), odd = row(2 * line + 1);
    if (product == Product::kSplit) {
      const Terms a = split(even), b = split(odd);
      store_bits(to, bf16_pairs<float>(a.high, b.high));
      store_bits(to + kTileBytes, bf16_pairs<float>(a.low, b.low));
    } else {
      store_bits(to, bf16_pairs<T>(even, odd));
    }
  }
}

}  // namespace aigc::AIGC_ISA
