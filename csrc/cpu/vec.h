// Sixteen 32-bit lanes on every ISA level.
//
// A value is one zmm, two ymm, four xmm or four NEON registers, each a GCC/Clang vector. Lane count, lane
// order and rounding are the same everywhere (operators never fuse, vfma always does), so a kernel gives the
// same bits on every level; only its speed differs. Included inside kernel sources, which are compiled once
// per level.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/args.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 about its own header's undefined registers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace aigc::AIGC_ISA {

#define AIGC_MEMBER inline __attribute__((always_inline))
#define AIGC_INLINE static AIGC_MEMBER

AIGC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
AIGC_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
AIGC_INLINE int64_t blocks_of(int64_t count, int64_t block) { return (count + block - 1) / block; }
AIGC_INLINE int64_t round_up(int64_t value, int64_t unit) { return blocks_of(value, unit) * unit; }
// The length of blocks as equal as can be, none longer than `most`.
AIGC_INLINE int64_t even_block(int64_t count, int64_t most) {
  return blocks_of(count, blocks_of(count, most));
}

// The widest register of the level; a wider vector the compiler would keep in memory. AIGC_WIDE names an
// intrinsic of that width, for what vectors lack or what is lowered badly.
#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#define AIGC_WIDE(operation) _mm512_##operation
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#define AIGC_WIDE(operation) _mm256_##operation
#else
constexpr int kRegisterBytes = 16;
#if defined(__x86_64__)
#define AIGC_WIDE(operation) _mm_##operation
#endif
#endif

constexpr int kLanes = 16;
constexpr int kBytes = kLanes * 4;
constexpr int kParts = kBytes / kRegisterBytes;

template <class T>
struct Lanes {
  typedef T Part __attribute__((vector_size(kRegisterBytes)));
  Part part[kParts];

  Lanes() = default;

  // The same bits in another type.
  template <class U>
  AIGC_MEMBER explicit Lanes(Lanes<U> bits) {
    for (int i = 0; i < kParts; ++i) part[i] = Part(bits.part[i]);
  }

  AIGC_MEMBER T operator[](int lane) const {
    T lanes[kBytes / sizeof(T)];
    std::memcpy(lanes, part, sizeof lanes);
    return lanes[lane];
  }
};
using Vec = Lanes<float>;
using IVec = Lanes<int32_t>;
using UVec = Lanes<uint32_t>;
using QVec = Lanes<uint64_t>;  // eight of them

template <class T>
AIGC_INLINE Lanes<T> fill(T value) {
  Lanes<T> v;
  for (auto& part : v.part) part = value - typename Lanes<T>::Part{};  // 0 + -0 would be an addition
  return v;
}

AIGC_INLINE Vec splat(float value) { return fill(value); }

// Lets the scalar operand convert to the lanes' type.
template <class T>
struct Scalar {
  using type = T;
};

#define AIGC_BINARY(op)                                                      \
  template <class T>                                                         \
  AIGC_INLINE Lanes<T> operator op(Lanes<T> a, Lanes<T> b) {                 \
    for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] op b.part[i];     \
    return a;                                                                \
  }                                                                          \
  template <class T>                                                         \
  AIGC_INLINE Lanes<T> operator op(Lanes<T> a, typename Scalar<T>::type b) { \
    for (auto& part : a.part) part = part op b;                              \
    return a;                                                                \
  }
AIGC_BINARY(+)
AIGC_BINARY(-)
AIGC_BINARY(*)
AIGC_BINARY(/)
AIGC_BINARY(&)
AIGC_BINARY(|)
AIGC_BINARY(^)
#undef AIGC_BINARY

// All ones where true, zero where false.
#define AIGC_COMPARE(op)                                                    \
  template <class T>                                                        \
  AIGC_INLINE IVec operator op(Lanes<T> a, Lanes<T> b) {                    \
    IVec mask;                                                              \
    for (int i = 0; i < kParts; ++i) mask.part[i] = a.part[i] op b.part[i]; \
    return mask;                                                            \
  }
AIGC_COMPARE(<)
AIGC_COMPARE(>)
AIGC_COMPARE(==)
#undef AIGC_COMPARE

template <class T>
AIGC_INLINE Lanes<T> operator-(Lanes<T> a) {
  for (auto& part : a.part) part = -part;
  return a;
}

template <class T>
AIGC_INLINE Lanes<T> operator~(Lanes<T> a) {
  for (auto& part : a.part) part = ~part;
  return a;
}

template <class T>
AIGC_INLINE Lanes<T> operator<<(Lanes<T> a, int bits) {
  for (auto& part : a.part) part = part << bits;
  return a;
}

template <class T>
AIGC_INLINE Lanes<T> operator>>(Lanes<T> a, int bits) {
  for (auto& part : a.part) part = part >> bits;
  return a;
}

template <class T>
AIGC_INLINE Lanes<T> select(IVec mask, Lanes<T> a, Lanes<T> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] = mask.part[i] ? a.part[i] : b.part[i];
  return a;
}

// The same numbers in another type: uint32 and int32 to float round to nearest even, float to int32
// truncates.
template <class To, class From>
AIGC_INLINE To convert(From from) {
  To to;
  for (int i = 0; i < kParts; ++i) to.part[i] = __builtin_convertvector(from.part[i], typename To::Part);
  return to;
}

// The larger, or smaller; b where either is NaN.
template <class T>
AIGC_INLINE Lanes<T> vmax(Lanes<T> a, Lanes<T> b) {
  return select(a > b, a, b);
}

template <class T>
AIGC_INLINE Lanes<T> vmin(Lanes<T> a, Lanes<T> b) {
  return select(a < b, a, b);
}

#ifdef AIGC_WIDE
AIGC_INLINE Vec vmax(Vec a, Vec b) {
  for (int i = 0; i < kParts; ++i) a.part[i] = AIGC_WIDE(max_ps)(a.part[i], b.part[i]);
  return a;
}

AIGC_INLINE Vec vmin(Vec a, Vec b) {
  for (int i = 0; i < kParts; ++i) a.part[i] = AIGC_WIDE(min_ps)(a.part[i], b.part[i]);
  return a;
}
#endif

AIGC_INLINE Vec vsqrt(Vec v) {
#ifdef AIGC_WIDE
  for (auto& part : v.part) part = AIGC_WIDE(sqrt_ps)(part);
#else
  for (auto& part : v.part)
    for (int i = 0; i < kRegisterBytes / 4; ++i) part[i] = std::sqrt(part[i]);
#endif
  return v;
}

// a b + c with one rounding: half the operations of a polynomial.
#if defined(__FMA__)
AIGC_INLINE Vec vfma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kParts; ++i) a.part[i] = AIGC_WIDE(fmadd_ps)(a.part[i], b.part[i], c.part[i]);
  return a;
}
#elif defined(__aarch64__)
AIGC_INLINE Vec vfma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kParts; ++i) a.part[i] = vfmaq_f32(c.part[i], a.part[i], b.part[i]);
  return a;
}
#else
// Without the instruction: the product is exact in double; the sum is rounded to odd (S. Boldo, G. Melquiond,
// "Emulation of FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd", 2008), so that the
// second rounding, to float, is the only one that counts.
AIGC_INLINE float fused(float a, float b, float c) {
  const double product = double(a) * double(b), total = product + double(c);
  const double back = total - product, error = (product - (total - back)) + (double(c) - back);
  int64_t bits;
  std::memcpy(&bits, &total, sizeof bits);
  if ((error > 0.0 || error < 0.0) && (bits & 1) == 0) bits += (error > 0.0) == (total > 0.0) ? 1 : -1;
  double odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return float(odd);
}

AIGC_INLINE Vec vfma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kParts; ++i)
    for (int lane = 0; lane < kRegisterBytes / 4; ++lane)
      a.part[i][lane] = fused(a.part[i][lane], b.part[i][lane], c.part[i][lane]);
  return a;
}
#endif
AIGC_INLINE Vec vfma(Vec a, Vec b, float c) { return vfma(a, b, splat(c)); }
AIGC_INLINE Vec vfma(Vec a, float b, float c) { return vfma(a, splat(b), splat(c)); }
AIGC_INLINE Vec vfma(Vec a, float b, Vec c) { return vfma(a, splat(b), c); }

// Sixteen values in memory order, as they are. Part by part: a copy of the whole would go through the stack.
template <class L>
AIGC_INLINE L load_bits(const void* p) {
  L v;
  for (int i = 0; i < kParts; ++i)
    std::memcpy(&v.part[i], static_cast<const char*>(p) + i * kRegisterBytes, kRegisterBytes);
  return v;
}

template <class T>
AIGC_INLINE void store_bits(void* p, Lanes<T> v) {
  for (int i = 0; i < kParts; ++i)
    std::memcpy(static_cast<char*>(p) + i * kRegisterBytes, &v.part[i], kRegisterBytes);
}

AIGC_INLINE Vec load(const float* p) { return load_bits<Vec>(p); }
AIGC_INLINE void store(float* p, Vec v) { store_bits(p, v); }

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

typedef uint16_t HalfPart __attribute__((vector_size(kRegisterBytes / 2)));

AIGC_INLINE Vec load(const uint16_t* p) {
  UVec bits;
  for (int i = 0; i < kParts; ++i) {
    HalfPart half;
    std::memcpy(&half, p + i * (kLanes / kParts), sizeof half);
#if defined(__AVX512F__)  // GCC 12 widens half a register at a time
    bits.part[i] = UVec::Part(_mm512_cvtepu16_epi32(__m256i(half)));
#else
    bits.part[i] = __builtin_convertvector(half, UVec::Part);
#endif
  }
  return Vec(bits << 16);
}

// Rounded to bfloat16, in the upper half of each lane.
AIGC_INLINE UVec round_bf16(Vec v) {
  const UVec bits(v);
  const UVec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return select(v == v, rounded, bits | 0x400000u);
}

// The upper half of each lane.
AIGC_INLINE void store_high(uint16_t* p, UVec v) {
  const UVec bits = v >> 16;
  for (int i = 0; i < kParts; ++i) {
    const HalfPart half = __builtin_convertvector(bits.part[i], HalfPart);
    std::memcpy(p + i * (kLanes / kParts), &half, sizeof half);
  }
}

AIGC_INLINE void store(uint16_t* p, Vec v) { store_high(p, round_bf16(v)); }

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

// Fixed tree: lanes 8 apart, then 4, 2, 1.
#if defined(__x86_64__)
AIGC_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  const __m512d bits = _mm512_castps_pd(v.part[0]);
  const __m256 eight = _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(bits)),
                                     _mm256_castpd_ps(_mm512_extractf64x4_pd(bits, 1)));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX2__)
  const __m256 eight = _mm256_add_ps(v.part[0], v.part[1]);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const __m128 four = _mm_add_ps(_mm_add_ps(v.part[0], v.part[2]), _mm_add_ps(v.part[1], v.part[3]));
#endif
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#else
AIGC_INLINE float sum(Vec v) {
  float a[kLanes];
  store(a, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a[i] = a[i] + a[i + width];
  return a[0];
}
#endif

// e^x by 2^n p(r), r = x - n ln 2 in [-ln2/2, ln2/2], p the degree-6 Taylor-like minimax polynomial (Cephes
// expf). At most 2 ULP on [-87.3, 88.3]; below it gives the smallest normal times p, above it saturates near
// FLT_MAX.
AIGC_INLINE Vec vexp(Vec x) {
  const Vec clamped = vmin(splat(88.37626f), vmax(splat(-87.33654f), x));
  const Vec shifted = vfma(clamped, 1.44269504088896341f, 12582912.0f);  // 1.5 * 2^23 rounds to an integer
  const Vec n = shifted - 12582912.0f;
  const Vec r = vfma(n, 2.12194440e-4f, vfma(n, -0.693359375f, clamped));
  Vec p = splat(1.9875691500e-4f);
  p = vfma(p, r, 1.3981999507e-3f);
  p = vfma(p, r, 8.3334519073e-3f);
  p = vfma(p, r, 4.1665795894e-2f);
  p = vfma(p, r, 1.6666665459e-1f);
  p = vfma(p, r, 5.0000001201e-1f);
  p = vfma(p, r * r, r) + 1.0f;
  return p * Vec((UVec(shifted) << 23) + 0x3f800000u);  // the low bits of `shifted` are n
}

AIGC_INLINE Vec vsigmoid(Vec x) { return splat(1.0f) / (vexp(-x) + 1.0f); }

// Below -88, where e^-x saturates, the result is that at -88: -4e-37, as good as zero.
AIGC_INLINE Vec vsilu(Vec x) {
  const Vec bounded = vmax(splat(-88.0f), x);
  return bounded / (vexp(-bounded) + 1.0f);
}

}  // namespace aigc::AIGC_ISA
