#include "bind/launch.h"

namespace aigc {

void bind_embedding(py::module_& m) {
  m.def("embedding", [](uintptr_t indices, uintptr_t weight, uintptr_t y, int64_t count, int64_t rows,
                        int64_t row_bytes, int64_t row_pitch, bool wide, int threads) {
    launch(&KernelTable::embedding,
           EmbeddingArgs{in(indices), in(weight), out(y), count, rows, row_bytes, row_pitch, wide, threads});
  });
}

}  // namespace aigc
