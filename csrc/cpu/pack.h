// Into tiles: float32 or bfloat16 elements become lines of the left operand, or panels of the right one.
#pragma once

#include "cpu/product.h"

namespace aigc::AIGC_ISA {

AIGC_INLINE int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
AIGC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// x as high + low, two bfloat16: what is left out is at most 2^-16 of x. Floats that would round to
// infinity are cut instead; an infinity stays in `high`.
struct Terms {
  Vec high, low;
};

AIGC_INLINE Terms split(Vec x) {
  const Vec rounded = Vec(round_bf16(x) & 0xffff0000u), truncated = Vec(UVec(x) & 0xffff0000u);
  const IVec overflow = (UVec(rounded) & 0x7fffffffu) == fill(0x7f800000u);
  const Vec high = select(overflow, truncated, rounded);
  return {high, select(x == high, splat(0.0f), x - high)};
}

// To bfloat16, kept as one or as a float32 of the same value.
AIGC_INLINE void store_term(uint16_t* to, Vec v) { store(to, v); }
AIGC_INLINE void store_term(float* to, Vec v) { store(to, Vec(round_bf16(v) & 0xffff0000u)); }

// Writes a whole left line.
template <class P, class T>
AIGC_INLINE void write_line(char* line, const T* from) {
  if constexpr (std::is_same_v<typename P::Left, T> && !std::is_same_v<P, SplitProduct> &&
                !(std::is_same_v<P, BFloat16Product> && std::is_same_v<T, float>)) {
    std::memcpy(line, from, P::kLeft);
  } else {
    auto* to = reinterpret_cast<typename P::Left*>(line);
    for (int i = 0; i < P::kDepth; i += kLanes) {
      const Vec x = load(from + i);
      if constexpr (std::is_same_v<P, SplitProduct>) {
        const Terms terms = split(x);
        store_term(to + i, terms.high);
        store_term(to + P::kDepth + i, terms.low);
      } else {
        store_term(to + i, x);
      }
    }
  }
}

// Writes n elements from position `at` of a left line, zeros when `from` is null.
template <class P, class T>
inline void write_part(char* line, int at, const T* from, int n) {
  constexpr int kHalf = P::kDepth * sizeof(typename P::Left);
  alignas(64) char whole[P::kLeft] = {};
  if (from) {
    T elements[P::kDepth] = {};
    std::memcpy(elements, from, size_t(n) * sizeof(T));
    write_line<P>(whole, elements);
  }
  for (int half = 0; half < P::kLeft; half += kHalf)
    std::memcpy(line + half + at * sizeof(typename P::Left), whole + half, n * sizeof(typename P::Left));
}

// Writes n elements from depth k on, in the row whose first line is `line`; its next one is `pitch` bytes on.
template <class P, class T>
AIGC_INLINE void write_run(char* line, int64_t pitch, int64_t k, const T* from, int64_t n) {
  line += k / P::kDepth * pitch;
  int at = int(k % P::kDepth);
  while (n > 0) {
    const int count = int(smaller(n, P::kDepth - at));
    if (count == P::kDepth && from) {
      write_line<P>(line, from);
    } else if (count == P::kDepth) {
      std::memset(line, 0, P::kLeft);
    } else {
      write_part<P>(line, at, from, count);
    }
    if (from) from += count;
    n -= count, line += pitch, at = 0;
  }
}

// Packs rows [first, first + rows) over depth tiles [tile, tile + tiles) of a source. Source::Element is its
// element; source.runs(row, begin, end, f) calls f(k, elements or null, n) for stretches of depth in order,
// up to the source's own end.
template <class P, class Source>
inline void pack_left(const Source& source, int64_t first, int rows, int64_t tile, int64_t tiles,
                      char* left) {
  const int64_t begin = tile * P::kDepth, end = smaller((tile + tiles) * P::kDepth, source.depth);
  for (int r = 0; r < rows; ++r) {
    const int row_tile = r / kTileRows * kTileRows;
    const int64_t pitch = smaller(rows - row_tile, kTileRows) * P::kLeft;
    char* line = left + row_tile * tiles * P::kLeft + r % kTileRows * P::kLeft;
    source.runs(first + r, begin, end,
                [&](int64_t k, const typename Source::Element* from, int64_t n)
                    __attribute__((always_inline)) { write_run<P>(line, pitch, k - begin, from, n); });
    write_run<P>(line, pitch, end - begin, static_cast<const typename Source::Element*>(nullptr),
                 tiles * P::kDepth - (end - begin));
  }
}

}  // namespace aigc::AIGC_ISA
