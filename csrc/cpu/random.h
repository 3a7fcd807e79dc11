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

constexpr int kNormals = 64;  // what one call makes

// Elements [64 group, 64 group + 64) of the row: sixteen counters, two of eight 64-bit lanes.
AIGC_INLINE void normals(const PhiloxKeys& keys, uint64_t stream, uint64_t group, Vec (&z)[4]) {
  // Lane 4k+j takes block 4j+k, so that transposing 4x4 blocks leaves the elements in order.
  static constexpr uint64_t kEven[] = {0, 8, 1, 9, 2, 10, 3, 11}, kOdd[] = {4, 12, 5, 13, 6, 14, 7, 15};
  const uint64_t block = group * 16;
  QVec even[4] = {load_bits<QVec>(kEven) + block, fill(block >> 32), fill(stream), fill(stream >> 32)};
  QVec odd[4] = {load_bits<QVec>(kOdd) + block, even[1], even[2], even[3]};
  philox<VectorLanes>(keys, even);
  philox<VectorLanes>(keys, odd);
  UVec words[4];
  for (int i = 0; i < 4; ++i) words[i] = UVec((even[i] & 0xFFFFFFFFu) | (odd[i] << 32));
  box_muller<VectorLanes>(words[0], words[1], z[0], z[1]);
  box_muller<VectorLanes>(words[2], words[3], z[2], z[3]);
  transpose4(z);
}

}  // namespace aigc::AIGC_ISA
