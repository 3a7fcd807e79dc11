// out = (x - mean) / sqrt(variance + eps) * weight + bias over each contiguous row.
//
// A row (DiT-XL: 1,152 floats, 4.6 KB) stays in L1 between the passes, so x is read and out written once.
#include "cpu/moments.h"
#include "cpu/pair.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

template <class T>
Moments row_moments(const T* x, int64_t width) {
  Moments moments;
  for (int64_t first = 0; first < width; first += kRunBlock) {
    const int64_t n = width - first < kRunBlock ? width - first : kRunBlock;
    moments.add(double(n), run_sums(x + first, n));
  }
  return moments;
}

template <class T>
void run_row(const LayerNormArgs& a, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.width;
  T* out = static_cast<T*>(a.out) + row * a.width;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  const Centre centre(row_moments(x, a.width), a.eps);
  const Vec high = splat(centre.high), scale = splat(float(centre.scale));
  const Vec low = splat(float(-centre.low * centre.scale));
  for_pairs(a.width, [&](int64_t i, int n) __attribute__((always_inline)) {
    Pair v = load_pair(x + i, n);
    v = {(v.a - high) * scale + low, (v.b - high) * scale + low};
    if (weight) {
      const Pair w = load_pair(weight + i, n);
      v = {v.a * w.a, v.b * w.b};
    }
    if (bias) {
      const Pair b = load_pair(bias + i, n);
      v = {v.a + b.a, v.b + b.b};
    }
    store_pair(out + i, v, n);
  });
}

}  // namespace

void layer_norm(const LayerNormArgs& a) {
  parallel_for(a.rows, kGrain / a.width + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      a.dtype == DType::kFloat32 ? run_row<float>(a, row) : run_row<uint16_t>(a, row);
  });
}

}  // namespace aigc::AIGC_ISA
