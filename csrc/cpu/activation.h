// Activation functions on sixteen lanes, and the switch from their run-time name to a compile-time one.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

// erf x = x P(x^2) / Q(x^2), P and Q of degree 5, fitted on [0, 3.925], beyond which a float's erf is 1:
// minimax error 1.7e-8, 4e-7 with float32's roundings. No e^x, which would cost as much again.
AIGC_INLINE Vec verf(Vec x) {
  const Vec z = vmin(splat(3.925f), vmax(splat(-3.925f), x));
  const Vec y = z * z;
  Vec p = splat(5.340024106e-2f);
  p = vfma(p, y, 7.559188124f);
  p = vfma(p, y, 101.9193565f);
  p = vfma(p, y, 1395.838674f);
  p = vfma(p, y, 5074.081689f);
  p = vfma(p, y, 29671.06533f);
  Vec q = y + 31.28190038f;
  q = vfma(q, y, 399.3632789f);
  q = vfma(q, y, 3028.279704f);
  q = vfma(q, y, 13261.84350f);
  q = vfma(q, y, 26295.30043f);
  // Not below -1, which gelu would multiply by any x.
  return vmax(splat(-1.0f), z * p / q);
}

// tanh x = sign(x) (1 - 2 / (e^{2|x|} + 1)); below 0.625 Cephes' odd polynomial, which keeps small x exact.
AIGC_INLINE Vec vtanh(Vec x) {
  const Vec magnitude = select(x < splat(0.0f), -x, x);
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = vfma(p, z, 2.06390887954e-2f);
  p = vfma(p, z, -5.37397155531e-2f);
  p = vfma(p, z, 1.33314422036e-1f);
  p = vfma(p, z, -3.33332819422e-1f);
  const Vec small = vfma(p * z, x, x);
  const Vec far = splat(1.0f) - splat(2.0f) / (vexp(magnitude + magnitude) + 1.0f);
  const Vec big = select(x < splat(0.0f), -far, far);
  return select(magnitude < splat(0.625f), small, select(x == x, big, x));
}

AIGC_INLINE Vec vgelu(Vec x) {
  const Vec half = x * 0.5f;
  return vfma(half, verf(x * 0.70710678118654752f), half);
}

AIGC_INLINE Vec vgelu_tanh(Vec x) {
  const Vec inner = x * vfma(x * x, 0.79788456080286536f * 0.044715f, 0.79788456080286536f), half = x * 0.5f;
  return vfma(half, vtanh(inner), half);
}

template <Activation A>
AIGC_INLINE Vec activate(Vec x, float slope) {
  if constexpr (A == Activation::kRelu) return select(x < splat(0.0f), splat(0.0f), x);
  if constexpr (A == Activation::kLeakyRelu) return select(x < splat(0.0f), x * slope, x);
  if constexpr (A == Activation::kSilu) return vsilu(x);
  if constexpr (A == Activation::kGelu) return vgelu(x);
  if constexpr (A == Activation::kGeluTanh) return vgelu_tanh(x);
  if constexpr (A == Activation::kTanh) return vtanh(x);
  if constexpr (A == Activation::kSigmoid) return vsigmoid(x);
  return x;
}

template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

template <class F>
AIGC_INLINE void with_activation(Activation act, const F& f) {
  switch (act) {
    case Activation::kNone:
      return f(ActivationTag<Activation::kNone>{});
    case Activation::kRelu:
      return f(ActivationTag<Activation::kRelu>{});
    case Activation::kLeakyRelu:
      return f(ActivationTag<Activation::kLeakyRelu>{});
    case Activation::kSilu:
      return f(ActivationTag<Activation::kSilu>{});
    case Activation::kGelu:
      return f(ActivationTag<Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(ActivationTag<Activation::kGeluTanh>{});
    case Activation::kTanh:
      return f(ActivationTag<Activation::kTanh>{});
    case Activation::kSigmoid:
      return f(ActivationTag<Activation::kSigmoid>{});
  }
}

}  // namespace aigc::AIGC_ISA
