#include <pybind11/stl.h>

#include "bind/bind.h"
#include "bind/launch.h"

namespace aigc {

namespace {

template <class T>
PerRow<T> per_row(const py::object& setting) {
  const auto pair = setting.cast<std::pair<uintptr_t, T>>();
  return {static_cast<const T*>(in(pair.first)), pair.second};
}

}  // namespace

void bind_decode(py::module_& m) {
  m.def("decoder_step", [](uintptr_t x, uintptr_t keys, uintptr_t values, uintptr_t lengths, uintptr_t phases,
                           const std::vector<uintptr_t>& weights, uintptr_t new_keys, uintptr_t new_values,
                           uintptr_t scratch, int64_t rows, int64_t heads, int64_t head_dim, int64_t capacity,
                           int64_t up_width, int64_t down_width, float eps, int threads) {
    std::vector<const float*> pointers;
    for (const uintptr_t weight : weights) pointers.push_back(static_cast<const float*>(in(weight)));
    const DecoderStepArgs args{static_cast<float*>(out(x)),
                               static_cast<const float*>(in(keys)),
                               static_cast<const float*>(in(values)),
                               static_cast<const int64_t*>(in(lengths)),
                               static_cast<const float*>(in(phases)),
                               pointers.data(),
                               static_cast<float*>(out(new_keys)),
                               static_cast<float*>(out(new_values)),
                               static_cast<float*>(out(scratch)),
                               int64_t(pointers.size()) / kDecoderWeights,
                               rows,
                               heads,
                               head_dim,
                               capacity,
                               up_width,
                               down_width,
                               eps,
                               threads};
    launch_now(&KernelTable::decoder_step, args, "decoder_step");
  });
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
    launch_now(&KernelTable::sample_token, args, "sample_token");
  });
}

}  // namespace aigc
