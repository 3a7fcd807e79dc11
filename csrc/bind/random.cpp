#include "bind/bind.h"
#include "bind/launch.h"

namespace aigc {

void bind_random(py::module_& m) {
  m.def("philox_normal", [](uintptr_t seeds, uintptr_t result, int64_t rows, int64_t count, uint64_t stream,
                            int dtype, int threads) {
    launch(&KernelTable::philox_normal, PhiloxNormalArgs{static_cast<const int64_t*>(in(seeds)), out(result),
                                                         rows, count, stream, DType(dtype), threads});
  });
  m.def("philox_uniform", [](uintptr_t seeds, uintptr_t result, int64_t rows, uint64_t stream) {
    launch(&KernelTable::philox_uniform, PhiloxUniformArgs{static_cast<const int64_t*>(in(seeds)),
                                                           static_cast<float*>(out(result)), rows, stream});
  });
}

}  // namespace aigc
