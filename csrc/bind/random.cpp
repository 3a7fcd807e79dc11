#include "bind/bind.h"
#include "cpu/table.h"

namespace aigc {

void bind_random(py::module_& m) {
  m.def("philox_normal", [](uintptr_t seeds, uintptr_t result, int64_t rows, int64_t count, uint64_t stream,
                            int dtype, int threads) {
    py::gil_scoped_release unlocked;
    kernels().philox_normal(
        {static_cast<const int64_t*>(in(seeds)), out(result), rows, count, stream, DType(dtype), threads});
  });
  m.def("philox_uniform", [](uintptr_t seeds, uintptr_t result, int64_t rows, uint64_t stream) {
    py::gil_scoped_release unlocked;
    kernels().philox_uniform(
        {static_cast<const int64_t*>(in(seeds)), static_cast<float*>(out(result)), rows, stream});
  });
}

}  // namespace aigc
