// Into tiles: float32 or bfloat16 elements become lines of the left operand, or panels of the right one.
#pragma once

#include "cpu/product.h"

namespace aigc::AIGC_ISA {

// Where a row's result goes, which sample it belongs to, and its scale where it's quantised.
struct RowPlace {
  int64_t row;  // in units of the epilogue's strides
  int64_t sample;
  float scale = 1.0f;
};

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

// A row that is smaller than this all along counts as zero, so that 1 / scale is finite.
constexpr float kFaintest = 0x1p-100f;

// max|x| / 127 of a row; NaN where an element isn't finite.
template <class Source>
inline float row_scale(const Source& source, int64_t row) {
  // Magnitudes as bits: in order like the numbers, infinity and NaN above all.
  constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
  IVec most[2] = {fill(0), fill(0)};
  source.runs(row, 0, source.depth,
              [&](int64_t, const typename Source::Element* from, int64_t n) __attribute__((always_inline)) {
                if (!from) return;
                for (; n >= 2 * kLanes; n -= 2 * kLanes, from += 2 * kLanes)
                  for (int i = 0; i < 2; ++i)
                    most[i] = vmax(most[i], IVec(UVec(load(from + i * kLanes)) & kMagnitude));
                for (; n > 0; n -= kLanes, from += kLanes) {
                  const Vec x = n < kLanes ? load_n(from, int(n)) : load(from);
                  most[0] = vmax(most[0], IVec(UVec(x) & kMagnitude));
                }
              });
  int32_t lanes[kLanes], bits = 0;
  store_bits(lanes, vmax(most[0], most[1]));
  for (int lane : lanes) bits = lane > bits ? lane : bits;
  if (uint32_t(bits) >= kInfinity) return __builtin_nanf("");
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return largest < kFaintest ? 0.0f : largest / 127.0f;
}

AIGC_INLINE float inverse_of(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// x / scale to the nearest integer, to even at ties, as bytes or int16 of a left line. Adding 1.5 * 2^23
// rounds; the low bits of the result are the integer.
AIGC_INLINE UVec quantise(Vec x, float inverse) { return UVec(x * inverse + (12582912.0f + kInt8Offset)); }

AIGC_INLINE void store_low(uint16_t* to, UVec bits) {
  for (int i = 0; i < kParts; ++i) {
    const HalfPart half = __builtin_convertvector(bits.part[i], HalfPart);
    std::memcpy(to + i * (kLanes / kParts), &half, sizeof half);
  }
}

AIGC_INLINE void store_low(uint8_t* to, UVec bits) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(bits.part[0])));
#else
  typedef uint8_t BytePart __attribute__((vector_size(kRegisterBytes / 4)));
  for (int i = 0; i < kParts; ++i) {
    const BytePart bytes = __builtin_convertvector(bits.part[i], BytePart);
    std::memcpy(to + i * (kLanes / kParts), &bytes, sizeof bytes);
  }
#endif
}

template <class T>
AIGC_INLINE void write_int8_line(char* line, const T* from, float inverse) {
  auto* to = reinterpret_cast<Int8Product::Left*>(line);
  for (int i = 0; i < Int8Product::kDepth; i += kLanes) store_low(to + i, quantise(load(from + i), inverse));
  if constexpr (kInt8Line == Int8Line::kPairs) {
    for (int i = 0; i < Int8Product::kLeft; i += kBytes) {  // 0 1 2 3 to 0 2 1 3
      const QVec fours = load_bits<QVec>(line + i);
      const QVec both = (fours ^ (fours >> 16)) & 0xffff0000u;
      store_bits(line + i, fours ^ both ^ (both << 16));
    }
  }
}

// Whether a left line is kDepth elements as they are.
template <class P, class T>
constexpr bool kPlainLines = std::is_same_v<typename P::Left, T> && P::kLeft == P::kDepth * sizeof(T) &&
                             !P::kScaled && !(std::is_same_v<P, BFloat16Product> && std::is_same_v<T, float>);

// Writes a whole left line; `inverse` is what a quantised row's elements are multiplied by.
template <class P, class T>
AIGC_INLINE void write_line(char* line, const T* from, float inverse = 1.0f) {
  if constexpr (P::kScaled) {
    write_int8_line(line, from, inverse);
  } else if constexpr (kPlainLines<P, T>) {
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
inline void write_part(char* line, int at, const T* from, int n, float inverse) {
  constexpr int kHalf = P::kDepth * sizeof(typename P::Left);
  alignas(64) char whole[P::kLeft] = {};
  if (from || P::kScaled) {
    T elements[P::kDepth] = {};
    if (from) std::memcpy(elements, from, size_t(n) * sizeof(T));
    write_line<P>(whole, elements, inverse);
  }
  using Left = typename P::Left;
  if constexpr (P::kScaled && kInt8Line == Int8Line::kPairs) {
    for (int i = 0; i < n; ++i)
      std::memcpy(line + P::position(at + i) * sizeof(Left), whole + P::position(i) * sizeof(Left),
                  sizeof(Left));
    return;
  }
  for (int half = 0; half < P::kLeft; half += kHalf)
    std::memcpy(line + half + at * sizeof(Left), whole + half, n * sizeof(Left));
}

// Writes n elements from depth k on, in the row whose first line is `line`; its next one is `pitch` bytes on.
template <class P, class T>
AIGC_INLINE void write_run(char* line, int64_t pitch, int64_t k, const T* from, int64_t n, float inverse) {
  line += k / P::kDepth * pitch;
  int at = int(k % P::kDepth);
  while (n > 0) {
    const int count = int(smaller(n, P::kDepth - at));
    if (count == P::kDepth && from) {
      write_line<P>(line, from, inverse);
    } else if (count == P::kDepth) {
      std::memset(line, P::kScaled ? kInt8Offset : 0, P::kLeft);
    } else {
      write_part<P>(line, at, from, count, inverse);
    }
    if (from) from += count;
    n -= count, line += pitch, at = 0;
  }
}

// Packs rows [first, first + rows) over depth tiles [tile, tile + tiles) of a source. Source::Element is its
// element; source.runs(row, begin, end, f) calls f(k, elements or null, n) for stretches of depth in order,
// up to the source's own end. places[r] has the scale of row first + r.
template <class P, class Source>
inline void pack_left(const Source& source, int64_t first, int rows, int64_t tile, int64_t tiles,
                      const RowPlace* places, char* left) {
  const int64_t begin = tile * P::kDepth, end = smaller((tile + tiles) * P::kDepth, source.depth);
  for (int r = 0; r < rows; ++r) {
    const int row_tile = r / kTileRows * kTileRows;
    const int64_t pitch = smaller(rows - row_tile, kTileRows) * P::kLeft;
    char* line = left + row_tile * tiles * P::kLeft + r % kTileRows * P::kLeft;
    const float inverse = P::kScaled ? inverse_of(places[r].scale) : 1.0f;
    source.runs(
        first + r, begin, end,
        [&](int64_t k, const typename Source::Element* from, int64_t n)
            __attribute__((always_inline)) { write_run<P>(line, pitch, k - begin, from, n, inverse); });
    write_run<P>(line, pitch, end - begin, static_cast<const typename Source::Element*>(nullptr),
                 tiles * P::kDepth - (end - begin), inverse);
  }
}

}  // namespace aigc::AIGC_ISA
