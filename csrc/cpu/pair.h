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

// To nearest even. No test for NaN, as `store` has: one that came from a bfloat16 or from an invalid
// operation has only zeros below bit 16, so rounding can't carry it away.
AIGC_INLINE void store_pair(uint16_t* p, Pair v) {
  const UVec a(v.a), b(v.b);
  const UVec even = a + 0x7fffu + ((a >> 16) & 1u), odd = b + 0x7fffu + ((b >> 16) & 1u);
  store_bits(p, (even >> 16) | (odd & 0xffff0000u));
}

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
