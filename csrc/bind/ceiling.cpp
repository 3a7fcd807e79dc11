#include "bind/bind.h"
#include "cpu/table.h"

namespace aigc {

void bind_ceiling(py::module_& m) {
  m.def("ceiling", [](int loop, uintptr_t data, int64_t bytes, int64_t rounds, int threads) {
    py::gil_scoped_release unlocked;
    double done = 0.0;
    kernels().ceiling({CeilingLoop(loop), in(data), bytes, rounds, &done, threads});
    return done;
  });
}

}  // namespace aigc
