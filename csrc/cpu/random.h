// math/philox.h on sixteen lanes: 64 consecutive normals at a time, in element order.
#pragma once

#include <cmath>

#include "cpu/vec.h"
#include "math/philox.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 about its own header's undefined registers
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace aigc::AIGC_ISA {

typedef uint64_t QVec __attribute__((vector_size(64)));

// The widest register of the level, for the three operations that GCC vectors lack or lower badly: the
// product of even 32-bit lanes, the square root, and interleaving within 128 bits.
#if defined(__AVX512F__)
#define AIGC_WIDE(operation) _mm512_##operation
typedef __m512 FloatRegister;
typedef __m512i IntRegister;
#elif defined(__AVX2__)
#define AIGC_WIDE(operation) _mm256_##operation
typedef __m256 FloatRegister;
typedef __m256i IntRegister;
#elif defined(__x86_64__)
#define AIGC_WIDE(operation) _mm_##operation
typedef __m128 FloatRegister;
typedef __m128i IntRegister;
#endif

#ifdef AIGC_WIDE
constexpr int kRegisters = int(sizeof(Vec) / sizeof(FloatRegister));
struct FloatRegisters {
  FloatRegister part[kRegisters];
};
struct IntRegisters {
  IntRegister part[kRegisters];
};
#endif

template <class To, class From>
AIGC_INLINE To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Product of the low halves of 64-bit lanes.
AIGC_INLINE QVec multiply_low_words(QVec a, uint32_t b) {
#ifdef AIGC_WIDE
  auto r = as<IntRegisters>(a);
  for (auto& part : r.part) part = AIGC_WIDE(mul_epu32)(part, AIGC_WIDE(set1_epi32)(int(b)));
  return as<QVec>(r);
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

AIGC_INLINE Vec vsqrt(Vec v) {
#ifdef AIGC_WIDE
  auto r = as<FloatRegisters>(v);
  for (auto& part : r.part) part = AIGC_WIDE(sqrt_ps)(part);
  return as<Vec>(r);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// Transposes each aligned 4x4 block: lane 4k+i of v[j] goes to lane 4k+j of v[i].
AIGC_INLINE void transpose4(Vec (&v)[4]) {
#ifdef AIGC_WIDE
  FloatRegisters r[4] = {as<FloatRegisters>(v[0]), as<FloatRegisters>(v[1]), as<FloatRegisters>(v[2]),
                         as<FloatRegisters>(v[3])};
  for (int i = 0; i < kRegisters; ++i) {
    const FloatRegister low02 = AIGC_WIDE(unpacklo_ps)(r[0].part[i], r[2].part[i]);
    const FloatRegister low13 = AIGC_WIDE(unpacklo_ps)(r[1].part[i], r[3].part[i]);
    const FloatRegister high02 = AIGC_WIDE(unpackhi_ps)(r[0].part[i], r[2].part[i]);
    const FloatRegister high13 = AIGC_WIDE(unpackhi_ps)(r[1].part[i], r[3].part[i]);
    r[0].part[i] = AIGC_WIDE(unpacklo_ps)(low02, low13);
    r[1].part[i] = AIGC_WIDE(unpackhi_ps)(low02, low13);
    r[2].part[i] = AIGC_WIDE(unpacklo_ps)(high02, high13);
    r[3].part[i] = AIGC_WIDE(unpackhi_ps)(high02, high13);
  }
  for (int i = 0; i < 4; ++i) v[i] = as<Vec>(r[i]);
#else
  Vec t[4];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < 4; ++j) t[lane % 4][lane / 4 * 4 + j] = v[j][lane];
  for (int i = 0; i < 4; ++i) v[i] = t[i];
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
  static AIGC_HD Float to_float(Word w) { return __builtin_convertvector(w, Vec); }
  static AIGC_HD Float to_float(Int i) { return __builtin_convertvector(i, Vec); }
  static AIGC_HD Word bits(Float f) { return Word(f); }
  static AIGC_HD Float from_bits(Word w) { return Float(w); }
  static AIGC_HD Float sqrt(Float f) { return vsqrt(f); }
};

constexpr int kNormals = 64;  // what one call makes

// Elements [64 group, 64 group + 64) of the row: sixteen counters, two of eight 64-bit lanes.
AIGC_INLINE void normals(const PhiloxKeys& keys, uint64_t stream, uint64_t group, Vec (&z)[4]) {
  // Lane 4k+j takes block 4j+k, so that transposing 4x4 blocks leaves the elements in order.
  constexpr QVec kEven = {0, 8, 1, 9, 2, 10, 3, 11}, kOdd = {4, 12, 5, 13, 6, 14, 7, 15};
  const uint64_t block = group * 16;
  QVec even[4] = {kEven + block, QVec{} + (block >> 32), QVec{} + stream, QVec{} + (stream >> 32)};
  QVec odd[4] = {kOdd + block, even[1], even[2], even[3]};
  philox<VectorLanes>(keys, even);
  philox<VectorLanes>(keys, odd);
  UVec words[4];
  for (int i = 0; i < 4; ++i) words[i] = UVec((even[i] & 0xFFFFFFFFu) | (odd[i] << 32));
  box_muller<VectorLanes>(words[0], words[1], z[0], z[1]);
  box_muller<VectorLanes>(words[2], words[3], z[2], z[3]);
  transpose4(z);
}

}  // namespace aigc::AIGC_ISA
