#include "bind/bind.h"
#include "cpu/table.h"

namespace aigc {

void bind_activation(py::module_& m) {
  m.def("bias_act",
        [](uintptr_t x, uintptr_t bias, uintptr_t y, int64_t outer, int64_t channels, int64_t inner, int dtype,
           int act, float slope, float gain, float clamp, int threads) {
          py::gil_scoped_release unlocked;
          kernels().bias_act({in(x), in(bias), out(y), outer, channels, inner, DType(dtype), Activation(act),
                              slope, gain, clamp, threads});
        });
}

}  // namespace aigc
