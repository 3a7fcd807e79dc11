// What becomes of sums: bias, activation or gated pair, gate, residual, one rounding.
#pragma once

#include "cpu/activation.h"
#include "cpu/pack.h"

namespace aigc::AIGC_ISA {

template <class T>
AIGC_INLINE Vec load_columns(const void* p, int64_t at, int n) {
  const T* from = static_cast<const T*>(p) + at;
  return n == kLanes ? load(from) : load_n(from, n);
}

// What 16 columns' sums are worth: float32 as it is,
struct PlainSums {
  AIGC_MEMBER PlainSums(const EpilogueArgs&, int64_t) {}
  AIGC_MEMBER Vec operator()(const float* sum, const RowPlace&) const { return load(sum); }
};

// int32 times the scales of its row and column.
struct ScaledSums {
  Vec scale;
  UVec offset;

  AIGC_MEMBER ScaledSums(const EpilogueArgs& e, int64_t c)
      : scale(load(e.scales + c)), offset(load_bits<UVec>(e.column_sums + c) * uint32_t(kInt8Offset)) {}
  AIGC_MEMBER Vec operator()(const float* sum, const RowPlace& place) const {
    return convert<Vec>(IVec(load_bits<UVec>(sum) - offset)) * place.scale * scale;
  }
};

template <class P>
using SumsOf = std::conditional_t<P::kScaled, ScaledSums, PlainSums>;

// 16 columns of one row, or fewer, from column c on.
template <class T>
AIGC_INLINE void finish_columns(const EpilogueArgs& e, Vec v, RowPlace place, int64_t c, int n) {
  if (e.gate)
    v = v * load_columns<T>(e.gate, (e.gate_per_sample ? place.sample : place.row) * e.gate_stride + c, n);
  if (e.residual) v = v + load_columns<T>(e.residual, place.row * e.residual_stride + c, n);
  T* to = static_cast<T*>(e.out) + place.row * e.out_stride + c;
  n == kLanes ? store(to, v) : store_n(to, v, n);
}

template <Activation A, class T, class Sums>
void finish_plain(const EpilogueArgs& e, const RowPlace* places, int rows, int64_t panel, int count,
                  const float* sums, int64_t sum_panel) {
  for (int v = 0; v < count; ++v) {
    const int64_t c = (panel + v) * kLanes;
    const int n = int(smaller(kLanes, e.columns - c));
    if (n <= 0) return;
    const Vec bias = e.bias ? load_columns<T>(e.bias, c, n) : splat(0.0f);
    const Sums worth(e, c);
    for (int r = 0; r < rows; ++r) {
      const float* sum = sums + v * sum_panel + r * kLanes;
      Vec x = worth(sum, places[r]) + bias;
      if (e.sample_bias)
        x = x + load_columns<T>(e.sample_bias, places[r].sample * e.sample_bias_stride + c, n);
      finish_columns<T>(e, activate<A>(x, e.slope), places[r], c, n);
    }
  }
}

// The sums of two panels: the same 16 columns of the first and of the second half.
template <Gating G, class T, class Sums>
void finish_gated(const EpilogueArgs& e, const RowPlace* places, int rows, int64_t panel, const float* sums,
                  int64_t sum_panel) {
  const int64_t c = panel / 2 * kLanes;
  const int n = int(smaller(kLanes, e.columns - c));
  const Vec none = splat(0.0f);
  const Sums first_worth(e, c), second_worth(e, e.columns + c);
  const Vec first_bias = e.bias ? load_columns<T>(e.bias, c, n) : none;
  const Vec second_bias = e.bias ? load_columns<T>(e.bias, e.columns + c, n) : none;
  for (int r = 0; r < rows; ++r) {
    const float* sum = sums + r * kLanes;
    const Vec first = first_worth(sum, places[r]) + first_bias;
    const Vec second = second_worth(sum + sum_panel, places[r]) + second_bias;
    const Vec y = G == Gating::kGeglu ? first * vgelu(second) : vsilu(first) * second;
    finish_columns<T>(e, y, places[r], c, n);
  }
}

// Finishes `rows` rows of `count` panels, whose sums lie `sum_panel` floats apart.
template <class T, class Sums>
inline void finish(const EpilogueArgs& e, const RowPlace* places, int rows, int64_t panel, int count,
                   const float* sums, int64_t sum_panel) {
  if (e.gating == Gating::kGeglu)
    return finish_gated<Gating::kGeglu, T, Sums>(e, places, rows, panel, sums, sum_panel);
  if (e.gating == Gating::kSwiglu)
    return finish_gated<Gating::kSwiglu, T, Sums>(e, places, rows, panel, sums, sum_panel);
  with_activation(e.act, [&](auto act) {
    finish_plain<decltype(act)::value, T, Sums>(e, places, rows, panel, count, sums, sum_panel);
  });
}

}  // namespace aigc::AIGC_ISA
