// Sixteen float lanes on every ISA level.
//
// The compiler lowers these GCC/Clang vectors to one zmm, two ymm, four xmm or four NEON registers. Lane count,
// lane order and rounding (multiply and add, never fused) are the same everywhere, so a kernel gives the same
// bits on every level; only its speed differs. Included inside kernel sources, which are compiled once per level.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/args.h"

namespace aigc::AIGC_ISA {

#define AIGC_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));
typedef uint32_t UVec __attribute__((vector_size(64)));
typedef uint16_t HVec __attribute__((vector_size(32)));

AIGC_INLINE Vec splat(float value) { return Vec{} + value; }

AIGC_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

AIGC_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// bfloat16 is the upper half of a float; storing rounds to nearest even and keeps NaN a NaN.
AIGC_INLINE float to_float(uint16_t h) {
  uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

AIGC_INLINE uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

AIGC_INLINE Vec load(const uint16_t* p) {
  HVec h;
  std::memcpy(&h, p, sizeof h);
  return Vec(__builtin_convertvector(h, UVec) << 16);
}

AIGC_INLINE void store(uint16_t* p, Vec v) {
  UVec bits = UVec(v);
  UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  UVec nan = (bits >> 16) | 0x40u;
  UVec is_nan = UVec((bits & 0x7fffffffu) > 0x7f800000u);
  HVec h = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), HVec);
  std::memcpy(p, &h, sizeof h);
}

AIGC_INLINE float to_float(float f) { return f; }
AIGC_INLINE void put(float* p, float f) { *p = f; }
AIGC_INLINE void put(uint16_t* p, float f) { *p = to_bf16(f); }

// Loads and stores of the first n < 16 lanes; missing lanes read as zero.
template <class T>
AIGC_INLINE Vec load_n(const T* p, int n) {
  T lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
AIGC_INLINE void store_n(T* p, Vec v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

AIGC_INLINE Vec select(IVec mask, Vec a, Vec b) { return Vec((mask & IVec(a)) | (~mask & IVec(b))); }
AIGC_INLINE Vec vmax(Vec a, Vec b) { return select(a > b, a, b); }
AIGC_INLINE Vec vmin(Vec a, Vec b) { return select(a < b, a, b); }

// Fixed tree: lanes 8 apart, then 4, 2, 1.
AIGC_INLINE float sum(Vec v) {
  float a[kLanes];
  store(a, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a[i] = a[i] + a[i + width];
  return a[0];
}

// e^x by 2^n * p(r), r = x - n ln 2 in [-ln2/2, ln2/2], p the degree-6 Taylor-like minimax polynomial (Cephes expf).
// At most 2 ULP on [-87.3, 88.3]; below it gives the smallest normal times p, above it saturates near FLT_MAX.
AIGC_INLINE Vec vexp(Vec x) {
  Vec clamped = vmin(vmax(x, splat(-87.33654f)), splat(88.37626f));
  Vec shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  Vec n = shifted - 12582912.0f;
  Vec r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IVec exponent = (__builtin_convertvector(n, IVec) + 127) << 23;
  Vec result = p * Vec(exponent);
  return select(x == x, result, x);
}

AIGC_INLINE Vec vsigmoid(Vec x) { return splat(1.0f) / (vexp(-x) + 1.0f); }
AIGC_INLINE Vec vsilu(Vec x) { return x / (vexp(-x) + 1.0f); }

}  // namespace aigc::AIGC_ISA
