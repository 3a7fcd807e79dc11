// Thirty-two consecutive elements as two vectors of floats.
//
// float32: the first sixteen, then the rest. bfloat16: the even elements, then the odd ones, since a 32-bit
// word holds one of each and gives them up for a shift and a mask; element order would cost a shuffle on
// every level, both ways. Kernels that treat all elements alike, or read their parameters by the same pairs,
// needn't know.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

constexpr int kPair = 2 * kLanes;

struct Pair {
  Vec a, b;
};

// Where element i of 32 stands when a pair's `a` and `b` are stored one after the other.
template <class T>
AIGC_INLINE int pair_slot(int i) {
  return sizeof(T) == 4 ? i : i % 2 * kLanes + i / 2;
}

AIGC_INLINE Pair load_pair(const float* p) { return {load(p), load(p + kLanes)}; }

AIGC_INLINE Pair load_pair(const uint16_t* p) {
  const UVec words = load_bits<UVec>(p);
  return {Vec(words << 16), Vec(words & 0xffff0000u)};
}

AIGC_INLINE void store_pair(float* p, Pair v) {
  store(p, v.a);
  store(p + kLanes, v.b);
}

// Sixteen and then sixteen elements (`store_in_order`), or as loaded from bfloat16 (`store_pair`). Rounded to
// nearest even; what is smaller than the smallest normal number becomes a zero, because AVX512_BF16 does
// so. That instruction takes 1.3 vector operations for 16 elements, the others 6; without it silu of a group
// norm took a third longer.
#if defined(__AVX512BF16__)
AIGC_INLINE void store_in_order(uint16_t* p, Pair v) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(v.b.part[0], v.a.part[0]));
}

AIGC_INLINE void store_pair(uint16_t* p, Pair v) {
  alignas(64) static constexpr uint16_t kInterleave[kPair] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                              21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                              11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(v.b.part[0], v.a.part[0]);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), halves));
}
#else
AIGC_INLINE UVec flushed(Vec v, UVec rounded) {
  const UVec bits(v);
  return select((bits & 0x7f800000u) == UVec{}, bits & 0x80000000u, rounded);
}

AIGC_INLINE void store_in_order(uint16_t* p, Pair v) {
  store_high(p, flushed(v.a, round_bf16(v.a)));
  store_high(p + kLanes, flushed(v.b, round_bf16(v.b)));
}

// No test for NaN, as `store` has: one that came from a bfloat16 or from an invalid operation has only zeros
// below bit 16, so rounding can't carry it away.
AIGC_INLINE UVec rounded_up(Vec v) {
  const UVec bits(v);
  return flushed(v, bits + 0x7fffu + ((bits >> 16) & 1u));
}

AIGC_INLINE void store_pair(uint16_t* p, Pair v) {
  store_bits(p, (rounded_up(v.a) >> 16) | (rounded_up(v.b) & 0xffff0000u));
}
#endif

// The first n < 32 elements; missing ones read as zero.
template <class T>
AIGC_INLINE Pair load_pair_n(const T* p, int n) {
  T elements[kPair] = {};
  std::memcpy(elements, p, size_t(n) * sizeof(T));
  return load_pair(elements);
}

template <class T>
AIGC_INLINE void store_pair_n(T* p, Pair v, int n) {
  T elements[kPair];
  store_pair(elements, v);
  std::memcpy(p, elements, size_t(n) * sizeof(T));
}

// Calls f(first, n) for every 32 elements of [0, count): n = 32 as a constant, and once with what is left.
template <class F>
AIGC_INLINE void for_pairs(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kPair <= count; i += kPair) f(i, kPair);
  if (i < count) f(i, int(count - i));
}

template <class T>
AIGC_INLINE Pair load_pair(const T* p, int n) {
  return n == kPair ? load_pair(p) : load_pair_n(p, n);
}

template <class T>
AIGC_INLINE void store_pair(T* p, Pair v, int n) {
  if (n == kPair) return store_pair(p, v);
  store_pair_n(p, v, n);
}

}  // namespace aigc::AIGC_ISA
