// out = act(gate) * value, the two halves of each row. Reads 2 D and writes D elements per row once.
#include "cpu/activation.h"
#include "cpu/pair.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

template <Activation A, class T>
void run(const GluArgs& a) {
  parallel_for(a.rows, kGrain / a.width + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(a.x) + row * 2 * a.width;
      const T* gate = a.gate_first ? x : x + a.width;
      const T* value = a.gate_first ? x + a.width : x;
      T* out = static_cast<T*>(a.out) + row * a.width;
      for_pairs(a.width, [&](int64_t i, int n) __attribute__((always_inline)) {
        const Pair g = load_pair(gate + i, n), v = load_pair(value + i, n);
        store_pair(out + i, {activate<A>(g.a, 0.0f) * v.a, activate<A>(g.b, 0.0f) * v.b}, n);
      });
    }
  });
}

}  // namespace

void glu(const GluArgs& a) {
  with_activation(a.act, [&](auto act) {
    if (a.dtype == DType::kFloat32) {
      run<decltype(act)::value, float>(a);
    } else {
      run<decltype(act)::value, uint16_t>(a);
    }
  });
}

}  // namespace aigc::AIGC_ISA
