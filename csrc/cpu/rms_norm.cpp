// out = x / sqrt(mean(x^2) + eps) * weight over each contiguous row; a row stays in L1 between the passes.
// Four rows go together, as in layer_norm.cpp. Vector operations per 16 elements: 1 for the sums, 2 for the
// result.
#include "cpu/norm.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for
constexpr int64_t kBlock = 8192;   // elements summed in float32; blocks meet in double
constexpr int kTogether = 4;       // rows

AIGC_INLINE void accumulate(Pair x, Vec* squares) {
  squares[0] = vfma(x.a, x.a, squares[0]), squares[1] = vfma(x.b, x.b, squares[1]);
}

template <class T>
AIGC_INLINE double sum_of_squares(const T* x, int64_t width) {
  double total = 0.0;
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t n = width - first < kBlock ? width - first : kBlock;
    Vec squares[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    int64_t i = 0;
    for (; i + 2 * kPair <= n; i += 2 * kPair) {
      accumulate(load_pair(x + first + i), squares);
      accumulate(load_pair(x + first + i + kPair), squares + 2);
    }
    for (; i < n; i += kPair)
      accumulate(load_pair(x + first + i, int(n - i < kPair ? n - i : kPair)), squares);
    total += sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
  return total;
}

template <class T, class O, int R>
void run_rows(const LayerNormArgs& a, int64_t row) {
  const int64_t width = a.width;
  const T* x = static_cast<const T*>(a.x) + row * width;
  O* out = static_cast<O*>(a.out) + row * width;
  const T* weight = static_cast<const T*>(a.weight);
  float scale[R];
  for (int r = 0; r < R; ++r) {
    const double mean = sum_of_squares(x + r * width, width) / double(width);
    scale[r] = float(1.0 / __builtin_sqrt(mean + double(a.eps)));
  }
  for_pairs(width, [=](int64_t i, int n) __attribute__((always_inline)) {
    Pair w = {splat(1.0f), splat(1.0f)};
    if (weight) w = load_pair(weight + i, n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Pair v = load_pair(x + r * width + i, n);
      store_result<T>(out + r * width + i, {v.a * scale[r] * w.a, v.b * scale[r] * w.b}, n);
    }
  });
}

}  // namespace

void rms_norm(const LayerNormArgs& a) {
  with_dtypes(a.dtype, a.out_dtype, [&](auto from, auto to) {
    using T = decltype(from);
    using O = decltype(to);
    parallel_for(a.rows, kGrain / a.width + 1, a.threads, [&](int64_t begin, int64_t end) {
      int64_t row = begin;
      for (; row + kTogether <= end; row += kTogether) run_rows<T, O, kTogether>(a, row);
      for (; row < end; ++row) run_rows<T, O, 1>(a, row);
    });
  });
}

}  // namespace aigc::AIGC_ISA
