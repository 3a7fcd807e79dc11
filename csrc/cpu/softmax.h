// The softmax of attention: scores of a block of keys become weights, row by row.
//
// Per 16 scores: one maximum in the first pass; in the second 6 (bfloat16) or 9 (float32) multiplications,
// maxima and FMAs, 5 additions, a shift, and half a conversion to bfloat16. A core that does one 512-bit FMA
// and one 512-bit addition a cycle (Zen 4) so makes at most 16/7 scores a cycle, 8e9 a second at 3.5 GHz
// (float32: 16/10, 5.6e9). The two products beside it take D cycles in bfloat16, so D = 64 spends a tenth of
// its time here and D = 40 a seventh; in float32 they take 2 D. On tiles they take D / 16, on cores with two
// such units: the passes weigh more than the products.
#pragma once

#include <limits>

#include "cpu/pack.h"

namespace aigc::AIGC_ISA {

constexpr float kNoScore = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0 (or above by roundings): 2^n p(r), r = x - n in [-1/2, 1/2], p minimax with p(0) = 1, so
// that 2^0 is 1 exactly. Below -126.5 it is 0 exactly. Precise: p of degree 6, at most 1 ULP; else degree
// 3, 1.1e-4 of the value, a twentieth of what rounding to bfloat16 may take.
template <bool Precise>
AIGC_INLINE Vec vexp2(Vec x) {
  const Vec clamped = vmax(splat(-127.0f), x);  // NaN stays NaN
  // 1.5 * 2^23 rounds to an integer; 127 is the exponent's bias, which leaves 2^-127 the bits of 0.
  const Vec shifted = clamped + 12583039.0f;
  const Vec r = clamped - (shifted - 12583039.0f);
  Vec p;
  if constexpr (Precise) {
    p = vfma(r, splat(1.5353362e-4f), splat(1.3398875e-3f));
    p = vfma(p, r, 9.618437e-3f);
    p = vfma(p, r, 5.5503324e-2f);
    p = vfma(p, r, 2.4022648e-1f);
    p = vfma(p, r, 6.931472e-1f);
  } else {
    p = vfma(r, splat(5.500893e-2f), splat(2.4221097e-1f));
    p = vfma(p, r, 6.932829e-1f);
  }
  p = vfma(p, r, 1.0f);
  return p * Vec(UVec(shifted) << 23);
}

// Fixed tree, as sum()'s.
AIGC_INLINE float highest_of(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v.part[0]);
#else
  float a[kLanes];
  store(a, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
  return a[0];
#endif
}

// What a row carries from one block of keys to the next.
struct alignas(kBytes) RowState {
  float total[kLanes];  // of the weights, by lane
  float highest;        // of the scores
  float shrink;         // what the last block multiplied earlier sums by
};

// The first pass over a row's scores, `panels` panels of them, each kTileFloats behind the other: the highest
// so far. `shrink` is exactly 1 where it stays, as it does when no key of the block is allowed: then the
// block leaves no trace. It's 1 too where nothing came before.
AIGC_INLINE void raise(const float* scores, int panels, float slope, RowState& state) {
  Vec most = load(scores);
  for (int p = 1; p < panels; ++p) most = vmax(load(scores + p * kTileFloats), most);
  const float before = state.highest, block = highest_of(most);
  state.shrink = 1.0f;
  if (!(block > before)) return;
  state.highest = block;
  if (before > kNoScore) state.shrink = vexp2<true>((splat(before) - splat(block)) * slope)[0];
}

// The weights of a depth tile of keys: P::kDepth / 16 vectors into one left line.
template <class P>
AIGC_INLINE void store_weights(char* line, const Vec* weights) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<P, BFloat16Product>) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(weights[1].part[0], weights[0].part[0]);
    std::memcpy(line, &pair, sizeof pair);
    return;
  }
#endif
  alignas(64) float elements[P::kDepth];
  for (int i = 0; i < P::kDepth / kLanes; ++i) store(elements + i * kLanes, weights[i]);
  write_line<P>(line, elements);
}

// The second pass: weight = 2^(slope (score - highest)), slope > 0, for a multiple of P::kDepth / 16 panels,
// into left lines that are `pitch` bytes apart.
template <class P>
AIGC_INLINE void weigh(const float* scores, int panels, float slope, char* line, int64_t pitch,
                       RowState& state) {
  constexpr bool kPrecise = !std::is_same_v<P, BFloat16Product>;
  constexpr int kVectors = P::kDepth / kLanes;
  const Vec base = splat(state.highest > kNoScore ? state.highest : 0.0f);
  Vec total = load(state.total) * state.shrink;
  for (int p = 0; p < panels; p += kVectors, line += pitch) {
    Vec weights[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      weights[i] = vexp2<kPrecise>((load(scores + (p + i) * kTileFloats) - base) * slope);
      total = total + weights[i];
    }
    store_weights<P>(line, weights);
  }
  store(state.total, total);
}

}  // namespace aigc::AIGC_ISA
