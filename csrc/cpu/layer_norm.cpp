// out = (x - mean) / sqrt(variance + eps) * weight + bias over each contiguous row, then * (1 + scale) +
// shift with a scale and a shift for each sample's rows.
//
// A row (DiT-XL: 1,152 floats, 4.6 KB) stays in L1 between the passes, so x is read and out written once.
// Four rows go together: their statistics, some 200 cycles of dependent scalar operations each, overlap, and
// the parameters, folded to one factor and one term, are loaded and folded once. Arithmetic, in vector
// operations per 16 elements: 3 for the sums, 3 for the result; bfloat16 unpacks twice (2) and packs (1.3
// with AVX512_BF16).
#include "cpu/moments.h"
#include "cpu/norm.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for
constexpr int kTogether = 4;       // rows

template <class T>
AIGC_INLINE Moments row_moments(const T* x, int64_t width) {
  Moments moments;
  for (int64_t first = 0; first < width; first += kRunBlock) {
    const int64_t n = width - first < kRunBlock ? width - first : kRunBlock;
    moments.add(double(n), run_sums(x + first, n));
  }
  return moments;
}

// What the elements of one sample's rows are multiplied by, and what is added then.
template <class T>
struct Affine {
  const T *weight, *bias, *scale, *shift;  // each may be null

  AIGC_MEMBER void at(int64_t i, int n, Pair& factor, Pair& term) const {
    factor = {splat(1.0f), splat(1.0f)}, term = {splat(0.0f), splat(0.0f)};
    if (weight) factor = load_pair(weight + i, n);
    if (bias) term = load_pair(bias + i, n);
    if (scale) {
      const Pair s = load_pair(scale + i, n);
      const Vec a = s.a + 1.0f, b = s.b + 1.0f;
      factor = {factor.a * a, factor.b * b}, term = {term.a * a, term.b * b};
    }
    if (shift) {
      const Pair s = load_pair(shift + i, n);
      term = {term.a + s.a, term.b + s.b};
    }
  }
};

// R rows of one sample.
template <class T, class O, int R>
void run_rows(const LayerNormArgs& a, int64_t row) {
  const int64_t width = a.width, sample = row / a.rows_per_sample;
  const T* x = static_cast<const T*>(a.x) + row * width;
  O* out = static_cast<O*>(a.out) + row * width;
  Affine<T> affine{static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
                   static_cast<const T*>(a.scale), static_cast<const T*>(a.shift)};
  if (affine.scale) affine.scale += sample * a.scale_stride;
  if (affine.shift) affine.shift += sample * a.shift_stride;
  float high[R], gain[R], low[R];
  for (int r = 0; r < R; ++r) {
    const Centre centre(row_moments(x + r * width, width), a.eps);
    high[r] = centre.high, gain[r] = float(centre.scale), low[r] = float(-centre.low * centre.scale);
  }
  for_pairs(width, [=](int64_t i, int n) __attribute__((always_inline)) {
    Pair factor, term;
    affine.at(i, n, factor, term);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Pair v = load_pair(x + r * width + i, n);
      const Vec scale = splat(gain[r]), rest = splat(low[r]);
      v = {vfma(v.a - high[r], scale, rest), vfma(v.b - high[r], scale, rest)};
      store_result<T>(out + r * width + i, {vfma(v.a, factor.a, term.a), vfma(v.b, factor.b, term.b)}, n);
    }
  });
}

}  // namespace

void layer_norm(const LayerNormArgs& a) {
  with_dtypes(a.dtype, a.out_dtype, [&](auto from, auto to) {
    using T = decltype(from);
    using O = decltype(to);
    parallel_for(a.rows, kGrain / a.width + 1, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end;) {
        const int64_t left = a.rows_per_sample - row % a.rows_per_sample;
        if (left >= kTogether && end - row >= kTogether) {
          run_rows<T, O, kTogether>(a, row);
          row += kTogether;
        } else {
          run_rows<T, O, 1>(a, row++);
        }
      }
    });
  });
}

}  // namespace aigc::AIGC_ISA
