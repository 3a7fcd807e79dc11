// e^x, log, sin and cos over all of float32, NaN and infinities included. Errors in ULP are those measured by
// tests/test_pointwise.py over the whole range.
#pragma once

#include <cfloat>

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

AIGC_INLINE Vec vabs(Vec x) { return Vec(UVec(x) & 0x7fffffffu); }

// vexp with results from the smallest denormal to infinity: 2^n is multiplied in two halves, either of which
// is a normal number. At most 2 ULP.
AIGC_INLINE Vec vexp_full(Vec x) {
  const Vec clamped = vmin(splat(90.0f), vmax(splat(-106.0f), x));
  const Vec shifted = vfma(clamped, 1.44269504088896341f, 12582912.0f);
  const Vec n = shifted - 12582912.0f;  // the low 22 bits of `shifted`
  const Vec r = vfma(n, 2.12194440e-4f, vfma(n, -0.693359375f, clamped));
  Vec p = splat(1.9875691500e-4f);
  p = vfma(p, r, 1.3981999507e-3f);
  p = vfma(p, r, 8.3334519073e-3f);
  p = vfma(p, r, 4.1665795894e-2f);
  p = vfma(p, r, 1.6666665459e-1f);
  p = vfma(p, r, 5.0000001201e-1f);
  p = vfma(p, r * r, r) + 1.0f;
  const IVec whole = IVec(UVec(shifted) << 10) >> 10, half = whole >> 1, rest = whole - half;
  return p * Vec(UVec(half << 23) + 0x3f800000u) * Vec(UVec(rest << 23) + 0x3f800000u);
}

// x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m by Cephes' logf polynomial about 1. At most 2 ULP.
AIGC_INLINE Vec vlog(Vec x) {
  const IVec tiny = x < splat(FLT_MIN);
  const Vec u = select(tiny, x * 8388608.0f, x);  // 2^23
  const UVec above = UVec(u) - 0x3F3504F3u;
  const Vec e = convert<Vec>(IVec(above) >> 23) - select(tiny, splat(23.0f), splat(0.0f));
  const Vec f = Vec((above & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
  const Vec z = f * f;
  Vec p = vfma(f, 7.0376836292e-2f, -1.1514610310e-1f);
  p = vfma(p, f, 1.1676998740e-1f);
  p = vfma(p, f, -1.2420140846e-1f);
  p = vfma(p, f, 1.4249322787e-1f);
  p = vfma(p, f, -1.6668057665e-1f);
  p = vfma(p, f, 2.0000714765e-1f);
  p = vfma(p, f, -2.4999993993e-1f);
  p = vfma(p, f, 3.3333331174e-1f);
  p = vfma(e, -2.12194440e-4f, p * f * z);
  p = vfma(z, -0.5f, p);
  const Vec log = vfma(e, 0.693359375f, f + p);
  constexpr float kInfinity = __builtin_inff();
  const Vec none = select(x == splat(0.0f), splat(-kInfinity), splat(__builtin_nanf("")));
  return select(x > splat(0.0f), select(x == splat(kInfinity), x, log), none);
}

AIGC_INLINE bool any(IVec mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(__m512i(mask.part[0])) != 0;
#else
  int32_t lanes[kLanes], bits = 0;
  store_bits(lanes, mask);
  for (int32_t lane : lanes) bits |= lane;
  return bits != 0;
#endif
}

// sin(x + quarters pi/2): x less its nearest multiple n of pi/2, taken off in three pieces with FMA, of which
// the first leaves an exact difference while |n| < 2^16; then Cephes' polynomials on [-pi/4, pi/4]. Larger x,
// which nothing but a test meets, go through libm in double. At most 2 ULP.
AIGC_INLINE Vec vsin(Vec x, uint32_t quarters) {
  const Vec shifted = vfma(x, 0.63661977236758134f, 12582912.0f);
  const Vec n = shifted - 12582912.0f;
  Vec r = vfma(n, -1.57079637f, x);
  r = vfma(n, 4.37113883e-8f, r);
  r = vfma(n, 1.71512451e-15f, r);
  const Vec z = r * r;
  Vec s = vfma(z, -1.9515295891e-4f, 8.3321608736e-3f);
  s = vfma(s, z, -1.6666654611e-1f);
  s = vfma(s * z, r, r);
  Vec c = vfma(z, 2.443315711809948e-5f, -1.388731625493765e-3f);
  c = vfma(c, z, 4.166664568298827e-2f);
  c = vfma(c * z, z, vfma(z, -0.5f, 1.0f));
  const UVec quarter = UVec(shifted) + quarters;  // its low bits are n's
  Vec result = select((quarter & 1u) == UVec{}, s, c);
  result = Vec(UVec(result) ^ ((quarter & 2u) << 30));
  const IVec far = ~(vabs(x) < splat(65536.0f));
  if (any(far)) {
    float from[kLanes], to[kLanes];
    store(from, x);
    store(to, result);
    for (int i = 0; i < kLanes; ++i) {
      if (__builtin_fabsf(from[i]) < 65536.0f) continue;
      to[i] = float(quarters ? std::cos(double(from[i])) : std::sin(double(from[i])));
    }
    result = load(to);
  }
  return result;
}

}  // namespace aigc::AIGC_ISA
