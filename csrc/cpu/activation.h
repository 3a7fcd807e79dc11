// Activation functions on sixteen lanes, and the switch from their run-time name to a compile-time one.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

// erf by |x| < 1: odd Taylor-Maclaurin minimax; else 1 - e^{-x^2} p(t), t = 1 / (1 + x/2)-style rational.
// Abramowitz and Stegun 7.1.26 is too coarse for float32, so both ranges use W. J. Cody-like minimax fits
// (Cephes erff): at most 2 ULP of 1.
AIGC_INLINE Vec verf(Vec x) {
  const Vec magnitude = select(x < splat(0.0f), -x, x);
  const Vec z = x * x;
  Vec small = splat(7.853861353153693e-5f);
  small = small * z - 8.010193625184903e-4f;
  small = small * z + 5.188327685732524e-3f;
  small = small * z - 2.685381193529856e-2f;
  small = small * z + 1.128358514861418e-1f;
  small = small * z - 3.761262582423300e-1f;
  small = small * z + 1.128379165726710e0f;
  small = small * x;
  const Vec q = splat(1.0f) / magnitude;
  const Vec y = q * q;
  Vec middle = splat(2.326819970068386e-2f);
  middle = middle * y - 1.387039388740657e-1f;
  middle = middle * y + 3.687424674597105e-1f;
  middle = middle * y - 5.824733027278666e-1f;
  middle = middle * y + 6.210004621745983e-1f;
  middle = middle * y - 4.944515323274145e-1f;
  middle = middle * y + 3.404879937665872e-1f;
  middle = middle * y - 2.741127028184656e-1f;
  middle = middle * y + 5.638259427386472e-1f;
  Vec large = splat(-1.047766399936249e+1f);
  large = large * y + 1.297719955372516e+1f;
  large = large * y - 7.495518717768503e+0f;
  large = large * y + 2.921019019210786e+0f;
  large = large * y - 1.015265279202700e+0f;
  large = large * y + 4.218463358204948e-1f;
  large = large * y - 2.820767439740514e-1f;
  large = large * y + 5.641895067754075e-1f;
  const Vec tail = splat(1.0f) - vexp(-z) * q * select(magnitude < splat(2.0f), middle, large);
  const Vec big = select(x < splat(0.0f), -tail, tail);
  return select(magnitude < splat(1.0f), small, select(x == x, big, x));
}

// tanh x = sign(x) (1 - 2 / (e^{2|x|} + 1)); below 0.625 Cephes' odd polynomial, which keeps small x exact.
AIGC_INLINE Vec vtanh(Vec x) {
  const Vec magnitude = select(x < splat(0.0f), -x, x);
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Vec small = p * z * x + x;
  const Vec far = splat(1.0f) - splat(2.0f) / (vexp(magnitude + magnitude) + 1.0f);
  const Vec big = select(x < splat(0.0f), -far, far);
  return select(magnitude < splat(0.625f), small, select(x == x, big, x));
}

AIGC_INLINE Vec vgelu(Vec x) { return x * 0.5f * (verf(x * 0.70710678118654752f) + 1.0f); }

AIGC_INLINE Vec vgelu_tanh(Vec x) {
  const Vec inner = (x + x * x * x * 0.044715f) * 0.79788456080286536f;
  return x * 0.5f * (vtanh(inner) + 1.0f);
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
