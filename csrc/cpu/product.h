// Products: how a left tile meets a right tile, one struct for each kind of operands.
//
// kDepth: elements of depth in a tile. kLeft, kRight: bytes that a left line and a right tile take. Sum: a
// vector of sums. kScaled: rows are quantised to int8 when packed, their scales applied to the sums. step():
// acc[R][V] += the products of 4 bytes of depth of R left rows, `pitch` bytes apart, with those of V right
// lines (vector levels).
// kStretch: depth tiles that a vector level sums before it adds them to the rest. Every accumulator takes its
// products in order of depth, so an element's bits don't depend on how many rows
// or columns are computed beside it.
#pragma once

#include <type_traits>

#include "cpu/tile.h"

namespace aigc::AIGC_ISA {

// a b + c in one rounding where the level has it in hardware. bfloat16 products are exact in float32, so
// there it makes no difference.
AIGC_INLINE Vec madd(Vec a, Vec b, Vec c) {
#if defined(__FMA__) || defined(__aarch64__)
  return vfma(a, b, c);
#else
  return a * b + c;
#endif
}

struct Float32Product {
  using Left = float;
  using Sum = Vec;
  static constexpr bool kTiles = false, kScaled = false;
  static constexpr int kDepth = 16, kLeft = kTileLine, kRight = kTileBytes;
#if defined(__AVX2__)
  static constexpr int kStretch = 4;
#else  // whose PyTorch is more precise: stretches of 32 products instead of 64 halve the largest error
  static constexpr int kStretch = 2;
#endif

  template <int R, int V>
  AIGC_MEMBER static void step(Vec (&acc)[R][V], const char* left, int64_t pitch, const char* right,
                               int64_t panel, int k) {
    Vec b[V];
    for (int v = 0; v < V; ++v) b[v] = load_bits<Vec>(right + v * panel + k * kTileLine);
    for (int r = 0; r < R; ++r) {
      float a;
      std::memcpy(&a, left + r * pitch + k * 4, sizeof a);
      for (int v = 0; v < V; ++v) acc[r][v] = madd(splat(a), b[v], acc[r][v]);
    }
  }
};

#if defined(__AVX512BF16__) || defined(AIGC_EMULATE_TILES)
constexpr bool kDotsBF16 = true;
#else
constexpr bool kDotsBF16 = false;
#endif

// One or more bfloat16 pairs of depth. Levels without bfloat16 arithmetic hold left pairs as float32 and
// widen right lines as they come.
template <int R, int V>
AIGC_INLINE void step_bf16(Vec (&acc)[R][V], const char* left, int64_t pitch, const char* right,
                           int64_t panel, int k) {
#if defined(__AVX512BF16__)
  __m512bh b[V];
  for (int v = 0; v < V; ++v) b[v] = (__m512bh)_mm512_loadu_si512(right + v * panel + k * kTileLine);
  for (int r = 0; r < R; ++r) {
    int32_t pair;
    std::memcpy(&pair, left + r * pitch + k * 4, sizeof pair);
    const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
    for (int v = 0; v < V; ++v) acc[r][v].part[0] = _mm512_dpbf16_ps(acc[r][v].part[0], a, b[v]);
  }
#else
  Vec even[V], odd[V];
  for (int v = 0; v < V; ++v) {
    const UVec pairs = load_bits<UVec>(right + v * panel + k * kTileLine);
    even[v] = Vec(pairs << 16), odd[v] = Vec(pairs & 0xffff0000u);
  }
  for (int r = 0; r < R; ++r) {
    float a[2];
    std::memcpy(a, left + r * pitch + k * 8, sizeof a);
    for (int v = 0; v < V; ++v) acc[r][v] = madd(splat(a[1]), odd[v], madd(splat(a[0]), even[v], acc[r][v]));
  }
#endif
}

// A left and a right tile that meet, as offsets from the beginning of a tile's operands.
struct Part {
  int left, right;
  bool same_left;  // as the part before
};

struct BFloat16Product {
  using Left = std::conditional_t<kDotsBF16, uint16_t, float>;
  using Sum = Vec;
  static constexpr bool kTiles = kHasTiles, kScaled = false;
  static constexpr int kDepth = 32, kLeft = kDepth * sizeof(Left), kRight = kTileBytes, kStretch = 8;
  static constexpr Part kParts[] = {{0, 0, false}};

  template <int R, int V>
  AIGC_MEMBER static void step(Vec (&acc)[R][V], const char* left, int64_t pitch, const char* right,
                               int64_t panel, int k) {
    step_bf16(acc, left, pitch, right, panel, k);
  }

  template <int D, int A, int B>
  AIGC_MEMBER static void dot() {
    tile_dot_bf16<D, A, B>();
  }
};

// float32 operands as the sum of two bfloat16 each, high and low; what low meets low is left out: 2^-16 of
// the product. A left line is its high line and its low line, a right tile its high tile and its low tile.
struct SplitProduct {
  using Left = BFloat16Product::Left;
  using Sum = Vec;
  static constexpr bool kTiles = kHasTiles, kScaled = false;
  static constexpr int kDepth = 32, kHalf = kDepth * sizeof(Left), kLeft = 2 * kHalf;
  static constexpr int kRight = 2 * kTileBytes, kStretch = 4;
  static constexpr Part kParts[] = {{0, 0, false}, {0, kTileBytes, true}, {kHalf, 0, false}};

  template <int R, int V>
  AIGC_MEMBER static void step(Vec (&acc)[R][V], const char* left, int64_t pitch, const char* right,
                               int64_t panel, int k) {
    for (const Part& part : kParts) step_bf16(acc, left + part.left, pitch, right + part.right, panel, k);
  }

  template <int D, int A, int B>
  AIGC_MEMBER static void dot() {
    tile_dot_bf16<D, A, B>();
  }
};

// What a left line of int8 holds. Tiles take them as they are; VNNI wants one side unsigned, so 128 is added
// and the epilogue takes 128 times the column's sum off again; elsewhere int16 pairs meet, and each four of
// depth lie as 0 2 1 3, because shifts split four bytes of a right line into 0 2 and 1 3.
enum class Int8Line { kSigned, kUnsigned, kPairs };
#if defined(__AVX512VNNI__)
constexpr Int8Line kInt8Line = kHasTiles ? Int8Line::kSigned : Int8Line::kUnsigned;
#else
constexpr Int8Line kInt8Line = kHasTiles ? Int8Line::kSigned : Int8Line::kPairs;
#endif
constexpr int kInt8Offset = kInt8Line == Int8Line::kUnsigned ? 128 : 0;

// c + the sums of two products, int16 by int16, in each lane.
AIGC_INLINE UVec dot_pairs(UVec a, UVec b, UVec c) {
#ifdef AIGC_WIDE
  using Bits = Lanes<long long>::Part;
  for (int i = 0; i < kParts; ++i)
    c.part[i] = c.part[i] + UVec::Part(AIGC_WIDE(madd_epi16)(Bits(a.part[i]), Bits(b.part[i])));
  return c;
#else
  const IVec low = ((IVec(a) << 16) >> 16) * ((IVec(b) << 16) >> 16);
  return c + UVec(low + (IVec(a) >> 16) * (IVec(b) >> 16));
#endif
}

// Exact: with int8 up to 127 in magnitude and a depth up to 2^17 sums fit int32, modulo 2^32 on the way.
struct Int8Product {
  using Left = std::conditional_t<kInt8Line == Int8Line::kPairs, uint16_t, uint8_t>;
  using Sum = UVec;
  static constexpr bool kTiles = kHasTiles, kScaled = true;
  static constexpr int kDepth = 64, kLeft = kDepth * sizeof(Left), kRight = kTileBytes, kStretch = 8;
  static constexpr Part kParts[] = {{0, 0, false}};

  // Where a left line has its element i.
  static constexpr int position(int i) {
    return kInt8Line == Int8Line::kPairs ? (i & ~3) | (i & 1) << 1 | (i & 2) >> 1 : i;
  }

  template <int R, int V>
  AIGC_MEMBER static void step(UVec (&acc)[R][V], const char* left, int64_t pitch, const char* right,
                               int64_t panel, int k) {
#if defined(__AVX512VNNI__)
    __m512i b[V];
    for (int v = 0; v < V; ++v) b[v] = _mm512_loadu_si512(right + v * panel + k * kTileLine);
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, left + r * pitch + k * 4, sizeof four);
      const __m512i a = _mm512_set1_epi32(four);
      for (int v = 0; v < V; ++v)
        acc[r][v].part[0] = UVec::Part(_mm512_dpbusd_epi32(__m512i(acc[r][v].part[0]), a, b[v]));
    }
#else
    for (int v = 0; v < V; ++v) {
      const auto bytes = load_bits<Lanes<int16_t> >(right + v * panel + k * kTileLine);
      const UVec b[2] = {UVec((bytes << 8) >> 8), UVec(bytes >> 8)};
      for (int half = 0; half < 2; ++half) {
        for (int r = 0; r < R; ++r) {
          uint32_t pair;
          std::memcpy(&pair, left + r * pitch + k * 8 + half * 4, sizeof pair);
          acc[r][v] = dot_pairs(fill(pair), b[half], acc[r][v]);
        }
      }
    }
#endif
  }

  template <int D, int A, int B>
  AIGC_MEMBER static void dot() {
    tile_dot_int8<D, A, B>();
  }
};

}  // namespace aigc::AIGC_ISA
