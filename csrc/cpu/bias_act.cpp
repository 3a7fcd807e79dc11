// out = clamp(act(x + bias[channel]) * gain). Memory-bound: reads x and writes out once.
#include "cpu/activation.h"
#include "cpu/vec.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

template <Activation A>
AIGC_INLINE Vec finish(Vec v, const BiasActArgs& a) {
  v = activate<A>(v, a.slope) * a.gain;
  if (a.clamp >= 0.0f) {
    // Comparisons that are false for NaN, so that it stays one, as torch.clamp has it.
    v = select(v > splat(a.clamp), splat(a.clamp), v);
    v = select(v < splat(-a.clamp), splat(-a.clamp), v);
  }
  return v;
}

// One channel's contiguous run: the same bias for every element.
template <Activation A, class T>
void run_inner(const BiasActArgs& a, int64_t row, int64_t first, int64_t last) {
  const T* x = static_cast<const T*>(a.x) + row * a.inner;
  T* out = static_cast<T*>(a.out) + row * a.inner;
  const Vec bias = splat(a.bias ? to_float(static_cast<const T*>(a.bias)[row % a.channels]) : 0.0f);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) store(out + i, finish<A>(load(x + i) + bias, a));
  if (i < last) store_n(out + i, finish<A>(load_n(x + i, int(last - i)) + bias, a), int(last - i));
}

// Channels-last rows (inner = 1): the bias runs along the row.
template <Activation A, class T>
void run_channels(const BiasActArgs& a, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.channels;
  T* out = static_cast<T*>(a.out) + row * a.channels;
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t i = 0; i < a.channels; i += kLanes) {
    const int n = a.channels - i < kLanes ? int(a.channels - i) : kLanes;
    Vec v = n == kLanes ? load(x + i) : load_n(x + i, n);
    if (bias) v = v + (n == kLanes ? load(bias + i) : load_n(bias + i, n));
    v = finish<A>(v, a);
    if (n == kLanes) {
      store(out + i, v);
    } else {
      store_n(out + i, v, n);
    }
  }
}

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

template <Activation A, class T>
void run(const BiasActArgs& a) {
  if (a.inner == 1) {
    const int64_t grain = kGrain / a.channels + 1;
    parallel_for(a.outer, grain, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) run_channels<A, T>(a, row);
    });
    return;
  }
  const int64_t blocks = (a.inner + kGrain - 1) / kGrain;
  const int64_t grain = a.inner < kGrain ? kGrain / a.inner + 1 : 1;
  parallel_for(a.outer * a.channels * blocks, grain, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * kGrain;
      const int64_t last = first + kGrain < a.inner ? first + kGrain : a.inner;
      run_inner<A, T>(a, item / blocks, first, last);
    }
  });
}

}  // namespace

void bias_act(const BiasActArgs& a) {
  with_activation(a.act, [&](auto act) {
    if (a.dtype == DType::kFloat32) {
      run<decltype(act)::value, float>(a);
    } else {
      run<decltype(act)::value, uint16_t>(a);
    }
  });
}

}  // namespace aigc::AIGC_ISA
