// y = act(x W^T + b) * gate + residual, W packed.
//
// 2 M K N operations over K N weights and M (K + N) elements. Large M is bound by the products; at M = 1
// every weight is read for one product, so the floor is the weight's bytes over read bandwidth, and the rows'
// bits are those they have in any batch.
#include "cpu/gemm.h"

namespace aigc::AIGC_ISA {
namespace {

template <class T>
struct RowSource {
  using Element = T;
  static constexpr bool kRows = true;
  const T* x;
  int64_t stride, depth, rows_per_sample;

  template <class F>
  AIGC_MEMBER void runs(int64_t row, int64_t begin, int64_t end, const F& f) const {
    f(begin, x + row * stride + begin, end - begin);
  }

  const char* line(int64_t row) const { return reinterpret_cast<const char*>(x + row * stride); }
  int64_t pitch() const { return stride * int64_t(sizeof(T)); }
  RowPlace place(int64_t row) const { return {row, row / rows_per_sample}; }
};

}  // namespace

void linear(const LinearArgs& a) {
  with_any_product(a.product, a.epilogue.dtype, [&](auto product, auto element) {
    using T = decltype(element);
    const RowSource<T> source{static_cast<const T*>(a.x), a.x_stride, a.depth, a.epilogue.rows_per_sample};
    gemm<decltype(product), T>(source, a.weight, a.rows, panels_of(a.epilogue), a.epilogue, a.threads);
  });
}

}  // namespace aigc::AIGC_ISA
