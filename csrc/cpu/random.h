// math/philox.h on sixteen lanes: 64 consecutive normals at a time, in element order.
#pragma once

#include <cmath>

#include "cpu/vec.h"
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

AIGC_INLINE Vec vsqrt(Vec v) {
#ifdef AIGC_WIDE
  for (auto& part : v.part) part = AIGC_WIDE(sqrt_ps)(part);
#else
  for (auto& part : v.part)
    for (int i = 0; i < kRegisterBytes / 4; ++i) part[i] = std::sqrt(part[i]);
#endif
  return v;
}

// Transposes each aligned 4x4 block: lane 4k+i of v[j] goes to lane 4k+j of v[i].
AIGC_INLINE void transpose4(Vec (&v)[4]) {
#ifdef AIGC_WIDE
  for (int i = 0; i < kParts; ++i) {
    const auto low02 = AIGC_WIDE(unpacklo_ps)(v[0].part[i], v[2].part[i]);
    const auto low13 = AIGC_WIDE(unpacklo_ps)(v[1].part[i], v[3].part[i]);
    const auto high02 = AIGC_WIDE(unpackhi_ps)(v[0].part[i], v[2].part[i]);
    const auto high13 = AIGC_WIDE(unpackhi_ps)(v[1].part[i], v[3].part[i]);
    v[0].part[i] = AIGC_WIDE(unpacklo_ps)(low02, low13);
    v[1].part[i] = AIGC_WIDE(unpackhi_ps)(low02, low13);
    v[2].part[i] = AIGC_WIDE(unpacklo_ps)(high02, high13);
    v[3].part[i] = AIGC_WIDE(unpackhi_ps)(high02, high13);
  }
#else
  float lanes[4][kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < 4; ++j) lanes[lane % 4][lane / 4 * 4 + j] = v[j][lane];
  for (int i = 0; i < 4; ++i) v[i] = load(lanes[i]);
#endif
}

struct VectorLanes {
  using Counter = QVec;  // a 32-bit word in the low half of each 64-bit lane; the high half is ignored
  using Word = UVec;
  using Int = IVec;
  using Float = Vec;

  static AIGC_HD void wide_product(Counter a, uint32_t b, Counter& high, Counter& low) {
    low = multiply_low_words(a, b);
    high = low >> 32;
  }
  static AIGC_HD Float to_float(Word w) { return convert<Vec>(w); }
  static AIGC_HD Float to_float(Int i) { return convert<Vec>(i); }
  static AIGC_HD Word bits(Float f) { return Word(f); }
  static AIGC_HD Float from_bits(Word w) { return Float(w); }
  static AIGC_HD Float sqrt(Float f) { return vsqrt(f); }
};

constexpr int kNormals = 64;          // a group: sixteen counters, two of eight 64-bit lanes
constexpr int64_t kNoiseBlock = 512;  // eight groups, 2 KiB: stays in the L1 cache

// The random words of elements [64 group, 64 group + 64) of a row, as the four vectors that box_muller pairs.
AIGC_INLINE void random_words(const PhiloxKeys& keys, uint64_t stream, uint64_t group, float* words) {
  // Lane 4k+j takes block 4j+k, so that transposing 4x4 blocks leaves the elements in order.
  static constexpr uint64_t kEven[] = {0, 8, 1, 9, 2, 10, 3, 11}, kOdd[] = {4, 12, 5, 13, 6, 14, 7, 15};
  const uint64_t block = group * 16;
  QVec even[4] = {load_bits<QVec>(kEven) + block, fill(block >> 32), fill(stream), fill(stream >> 32)};
  QVec odd[4] = {load_bits<QVec>(kOdd) + block, even[1], even[2], even[3]};
  philox<VectorLanes>(keys, even);
  philox<VectorLanes>(keys, odd);
  for (int i = 0; i < 4; ++i) store_bits(words + i * kLanes, UVec((even[i] & 0xFFFFFFFFu) | (odd[i] << 32)));
}

// Elements [first, first + count) of a row, first a multiple of kNormals and count at most kNoiseBlock, which
// is what z has room for.
//
// All words first: a group's rounds and polynomials are one chain of some 250 cycles and as many operations,
// so a core sees little more than one chain at a time unless the halves of several stand side by side.
AIGC_INLINE void normals(const PhiloxKeys& keys, uint64_t stream, int64_t first, int64_t count, float* z) {
  for (int64_t i = 0; i < count; i += kNormals)
    random_words(keys, stream, uint64_t((first + i) / kNormals), z + i);
  for (float* group = z; group < z + count; group += kNormals) {
    Vec v[4];
    UVec words[4];
    for (int i = 0; i < 4; ++i) words[i] = load_bits<UVec>(group + i * kLanes);
    box_muller<VectorLanes>(words[0], words[1], v[0], v[1]);
    box_muller<VectorLanes>(words[2], words[3], v[2], v[3]);
    transpose4(v);
    for (int i = 0; i < 4; ++i) store(group + i * kLanes, v[i]);
  }
}

}  // namespace aigc::AIGC_ISA
