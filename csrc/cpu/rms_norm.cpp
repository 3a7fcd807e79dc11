// out = x / sqrt(mean(x^2) + eps) * weight over each contiguous row; a row stays in L1 between the passes.
#include "cpu/pair.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for
constexpr int64_t kBlock = 8192;   // elements summed in float32; blocks meet in double

template <class T>
double sum_of_squares(const T* x, int64_t width) {
  double total = 0.0;
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t n = width - first < kBlock ? width - first : kBlock;
    Vec a = splat(0.0f), b = splat(0.0f);
    for_pairs(n, [&](int64_t i, int count) __attribute__((always_inline)) {
      const Pair v = load_pair(x + first + i, count);
      a = a + v.a * v.a;
      b = b + v.b * v.b;
    });
    total += sum(a + b);
  }
  return total;
}

template <class T>
void run_row(const LayerNormArgs& a, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.width;
  T* out = static_cast<T*>(a.out) + row * a.width;
  const T* weight = static_cast<const T*>(a.weight);
  const double mean = sum_of_squares(x, a.width) / double(a.width);
  const Vec scale = splat(float(1.0 / __builtin_sqrt(mean + double(a.eps))));
  for_pairs(a.width, [&](int64_t i, int n) __attribute__((always_inline)) {
    Pair v = load_pair(x + i, n);
    v = {v.a * scale, v.b * scale};
    if (weight) {
      const Pair w = load_pair(weight + i, n);
      v = {v.a * w.a, v.b * w.b};
    }
    store_pair(out + i, v, n);
  });
}

}  // namespace

void rms_norm(const LayerNormArgs& a) {
  parallel_for(a.rows, kGrain / a.width + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      a.dtype == DType::kFloat32 ? run_row<float>(a, row) : run_row<uint16_t>(a, row);
  });
}

}  // namespace aigc::AIGC_ISA
