#include "bind/bind.h"
#include "cpu/table.h"

namespace aigc {

namespace {

template <class T>
PerRow<T> per_row(const py::object& setting) {
  const auto pair = setting.cast<std::pair<uintptr_t, T>>();
  return {static_cast<const T*>(in(pair.first)), pair.second};
}

}  // namespace

void bind_decode(py::module_& m) {
  // A setting is (address of one value per row or 0, value for all rows).
  m.def("sample_token", [](uintptr_t logits, uintptr_t uniform, uintptr_t tokens, uintptr_t scratch,
                           int64_t rows, int64_t vocabulary, int64_t row_stride, int dtype,
                           const py::object& temperature, const py::object& top_p, const py::object& min_p,
                           const py::object& penalty, const py::object& top_k, uintptr_t previous,
                           uintptr_t lengths, int64_t previous_width, int threads) {
    const SampleTokenArgs args{in(logits),
                               static_cast<const float*>(in(uniform)),
                               static_cast<int64_t*>(out(tokens)),
                               static_cast<float*>(out(scratch)),
                               rows,
                               vocabulary,
                               row_stride,
                               DType(dtype),
                               per_row<float>(temperature),
                               per_row<float>(top_p),
                               per_row<float>(min_p),
                               per_row<float>(penalty),
                               per_row<int64_t>(top_k),
                               static_cast<const int64_t*>(in(previous)),
                               static_cast<const int64_t*>(in(lengths)),
                               previous_width,
                               threads};
    py::gil_scoped_release unlocked;
    kernels().sample_token(args);
  });
}

}  // namespace aigc
