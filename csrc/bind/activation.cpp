#include "bind/bind.h"
#include "bind/launch.h"

namespace aigc {

void bind_activation(py::module_& m) {
  m.def("bias_act", [](uintptr_t x, uintptr_t bias, uintptr_t y, int64_t outer, int64_t channels,
                       int64_t inner, int dtype, int act, float slope, float gain, float clamp, int threads) {
    launch(&KernelTable::bias_act, BiasActArgs{in(x), in(bias), out(y), outer, channels, inner, DType(dtype),
                                               Activation(act), slope, gain, clamp, threads});
  });
  m.def("glu", [](uintptr_t x, uintptr_t y, int64_t rows, int64_t width, int dtype, int act, bool gate_first,
                  int threads) {
    launch(&KernelTable::glu,
           GluArgs{in(x), out(y), rows, width, DType(dtype), Activation(act), gate_first, threads});
  });
}

}  // namespace aigc
