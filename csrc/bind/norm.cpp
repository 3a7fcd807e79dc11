#include "bind/bind.h"
#include "bind/launch.h"
#include "cpu/group_norm.h"

namespace aigc {

namespace {

GroupNormArgs group_norm_shape(int64_t batch, int64_t channels, int64_t inner, int64_t groups,
                               bool channels_last) {
  GroupNormArgs a{};
  a.batch = batch, a.channels = channels, a.inner = inner, a.groups = groups;
  a.channels_last = channels_last;
  return a;
}

// modulation: nothing, or (scale, scale_stride, shift, shift_stride, rows_per_sample).
template <void (*KernelTable::*kernel)(const LayerNormArgs&)>
void bind_row_norm(py::module_& m, const char* name) {
  m.def(name, [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, int64_t rows, int64_t width,
                 int dtype, int out_dtype, float eps, int threads, const py::tuple& modulation) {
    LayerNormArgs a{};
    a.x = in(x), a.weight = in(weight), a.bias = in(bias), a.out = out(y);
    a.rows = rows, a.width = width, a.rows_per_sample = rows;
    a.dtype = DType(dtype), a.out_dtype = DType(out_dtype), a.eps = eps, a.threads = threads;
    if (!modulation.empty()) {
      a.scale = in(modulation[0].cast<uintptr_t>()), a.scale_stride = modulation[1].cast<int64_t>();
      a.shift = in(modulation[2].cast<uintptr_t>()), a.shift_stride = modulation[3].cast<int64_t>();
      a.rows_per_sample = modulation[4].cast<int64_t>();
    }
    launch(kernel, a);
  });
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def(
      "group_norm_workspace",
      [](int64_t batch, int64_t channels, int64_t inner, int64_t groups, bool channels_last) {
        return group_norm_workspace(group_norm_shape(batch, channels, inner, groups, channels_last));
      },
      "Floats that group_norm needs beside its input.");
  m.def("group_norm", [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, uintptr_t workspace,
                         int64_t batch, int64_t channels, int64_t inner, int64_t groups, bool channels_last,
                         bool silu, int dtype, int out_dtype, float eps, int threads) {
    GroupNormArgs a = group_norm_shape(batch, channels, inner, groups, channels_last);
    a.x = in(x), a.weight = in(weight), a.bias = in(bias), a.out = out(y);
    a.workspace = static_cast<float*>(out(workspace));
    a.silu = silu, a.dtype = DType(dtype), a.out_dtype = DType(out_dtype), a.eps = eps, a.threads = threads;
    launch(&KernelTable::group_norm, a);
  });
  bind_row_norm<&KernelTable::layer_norm>(m, "layer_norm");
  bind_row_norm<&KernelTable::rms_norm>(m, "rms_norm");
}

}  // namespace aigc
