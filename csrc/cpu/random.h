// math/philox.h on sixteen lanes: 64 consecutive normals at a time, in element order.
#pragma once

#include "cpu/several.h"
#include "math/philox.h"

namespace aigc::AIGC_ISA {

// Product of the low halves of 64-bit lanes.
AIGC_INLINE QVec multiply_low_words(QVec a, uint32_t b) {
  for (auto& part : a.part) {
#if defined(__AVX512F__)
    part = QVec::Part(_mm512_mul_epu32(__m512i(part), _mm512_set1_epi32(int(b))));
#elif defined(__AVX2__)
    part = QVec::Part(_mm256_mul_epu32(__m256i(part), _mm256_set1_epi32(int(b))));
#elif defined(__x86_64__)
    part = QVec::Part(_mm_mul_epu32(__m128i(part), _mm_set1_epi32(int(b))));
#else
    part = (part & 0xFFFFFFFFu) * b;
#endif
  }
  return a;
}

// Lanes of `a` where the top bit is set, else of `b`.
AIGC_INLINE Vec choose(UVec top_bit, Vec a, Vec b) {
#if defined(__AVX512F__)
  a.part[0] = _mm512_mask_blend_ps(_mm512_movepi32_mask(__m512i(top_bit.part[0])), b.part[0], a.part[0]);
#elif defined(__AVX2__)
  for (int i = 0; i < kParts; ++i)
    a.part[i] = _mm256_blendv_ps(b.part[i], a.part[i], __m256(top_bit.part[i]));
#else
  a = select(IVec(top_bit) >> 31, a, b);
#endif
  return a;
}

AIGC_INLINE Vec add_exact_product(Vec a, float b, Vec c) {
#if defined(__FMA__)
  return vfma(a, b, c);
#else
  return a * b + c;
#endif
}

// The low halves of a's 64-bit lanes in even lanes, those of b's in odd ones.
AIGC_INLINE UVec pair_words(QVec a, QVec b) {
#if defined(__AVX512F__)
  const __m512i from = __m512i(b.part[0]);
  UVec v;
  v.part[0] = UVec::Part(_mm512_mask_shuffle_epi32(__m512i(a.part[0]), 0xAAAA, from, _MM_PERM_CCAA));
  return v;
#else
  return UVec((a & 0xFFFFFFFFu) | (b << 32));
#endif
}

// In each block of four lanes: low = a0 b0 a1 b1, high = a2 b2 a3 b3.
AIGC_INLINE void interleave(Vec a, Vec b, Vec& low, Vec& high) {
#ifdef AIGC_WIDE
  for (int i = 0; i < kParts; ++i) {
    low.part[i] = AIGC_WIDE(unpacklo_ps)(a.part[i], b.part[i]);
    high.part[i] = AIGC_WIDE(unpackhi_ps)(a.part[i], b.part[i]);
  }
#else
  float lanes[2][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    float* to = &lanes[lane / 2 % 2][lane / 4 * 4 + lane % 2 * 2];
    to[0] = a[lane], to[1] = b[lane];
  }
  low = load(lanes[0]), high = load(lanes[1]);
#endif
}

// Counters are one vector's, words and floats N of them.
template <int N>
struct VectorLanes {
  using Counter = QVec;  // a 32-bit word in the low half of each 64-bit lane; the high half is ignored
  using Word = Several<UVec, N>;
  using Int = Several<IVec, N>;
  using Float = Several<Vec, N>;

  static AIGC_HD void wide_product(Counter a, uint32_t b, Counter& high, Counter& low) {
    low = multiply_low_words(a, b);
    high = low >> 32;
  }
  template <class From>
  static AIGC_HD Float to_float(const Several<From, N>& from) {
    Float to;
    for (int i = 0; i < N; ++i) to.v[i] = convert<Vec>(from.v[i]);
    return to;
  }
  static AIGC_HD Word bits(const Float& f) { return Word(f); }
  static AIGC_HD Float from_bits(const Word& w) { return Float(w); }
  static AIGC_HD Float sqrt(Float f) {
    for (auto& v : f.v) v = vsqrt(v);
    return f;
  }
  static AIGC_HD Float add_exact_product(Float a, float b, const Float& c) {
    for (int i = 0; i < N; ++i) a.v[i] = AIGC_ISA::add_exact_product(a.v[i], b, c.v[i]);
    return a;
  }
  static AIGC_HD Float add_exact_product(Float a, float b, float c) {
    for (auto& v : a.v) v = AIGC_ISA::add_exact_product(v, b, splat(c));
    return a;
  }
  static AIGC_HD Float choose(const Word& top_bit, Float if_set, const Float& if_not) {
    for (int i = 0; i < N; ++i) if_set.v[i] = AIGC_ISA::choose(top_bit.v[i], if_set.v[i], if_not.v[i]);
    return if_set;
  }
};

constexpr int kNormals = 64;          // a group: sixteen counters, two of eight 64-bit lanes
constexpr int64_t kNoiseBlock = 512;  // eight groups, 2 KiB: stays in the L1 cache

// The random words of elements [64 group, 64 group + 64) of a row: 16 for radii, 16 for their angles, twice.
AIGC_INLINE void random_words(const PhiloxKeys& keys, uint64_t stream, uint64_t group, float* words) {
  // The order of counters in which interleaving cosines and sines leaves the elements in theirs.
  static constexpr uint64_t kFirst[] = {0, 4, 1, 5, 2, 6, 3, 7}, kSecond[] = {8, 12, 9, 13, 10, 14, 11, 15};
  const uint64_t block = group * 16;
  QVec first[4] = {load_bits<QVec>(kFirst) + block, fill(block >> 32), fill(stream), fill(stream >> 32)};
  QVec second[4] = {load_bits<QVec>(kSecond) + block, first[1], first[2], first[3]};
  philox<VectorLanes<1>>(keys, first);
  philox<VectorLanes<1>>(keys, second);
  store_bits(words, pair_words(first[0], first[2]));
  store_bits(words + kLanes, pair_words(first[1], first[3]));
  store_bits(words + 2 * kLanes, pair_words(second[0], second[2]));
  store_bits(words + 3 * kLanes, pair_words(second[1], second[3]));
}

// The normals of 32 N random words, in their place.
template <int N>
AIGC_INLINE void normals_of_words(float* z) {
  using Lanes = VectorLanes<N>;
  typename Lanes::Word radius, angle;
  for (int i = 0; i < N; ++i) {
    radius.v[i] = load_bits<UVec>(z + 2 * i * kLanes);
    angle.v[i] = load_bits<UVec>(z + (2 * i + 1) * kLanes);
  }
  typename Lanes::Float cosines, sines;
  box_muller<Lanes>(radius, angle, cosines, sines);
  for (int i = 0; i < N; ++i) {
    Vec low, high;
    interleave(cosines.v[i], sines.v[i], low, high);
    store(z + 2 * i * kLanes, low);
    store(z + (2 * i + 1) * kLanes, high);
  }
}

// Elements [first, first + count) of a row, first a multiple of kNormals and count at most kNoiseBlock, which
// is what z has room for.
//
// All words first, and the polynomials of two groups at a time: each is one chain of some 120 cycles and few
// more operations, so a core would see little more than one chain at once.
AIGC_INLINE void normals(const PhiloxKeys& keys, uint64_t stream, int64_t first, int64_t count, float* z) {
  for (int64_t i = 0; i < count; i += kNormals)
    random_words(keys, stream, uint64_t((first + i) / kNormals), z + i);
  int64_t i = 0;
  for (; i + kNormals < count; i += 2 * kNormals) normals_of_words<4>(z + i);
  if (i < count) normals_of_words<2>(z + i);
}

}  // namespace aigc::AIGC_ISA
