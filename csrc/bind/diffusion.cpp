#include "bind/bind.h"
#include "cpu/table.h"

namespace aigc {

void bind_diffusion(py::module_& m) {
  m.def("linear_update",
        [](const py::list& terms, const py::list& strides, uintptr_t result, int64_t result_stride,
           uintptr_t coefficients, uintptr_t noise_scale, uintptr_t seeds, uintptr_t streams, int64_t rows,
           int64_t count, int dtype, int threads) {
          if (terms.size() > LinearUpdateArgs::kMaxTerms || strides.size() != terms.size())
            throw py::value_error("linear_update: too many terms");
          LinearUpdateArgs args{};
          args.num_terms = int(terms.size());
          for (int j = 0; j < args.num_terms; ++j) {
            args.terms[j] = in(terms[j].cast<uintptr_t>());
            args.term_strides[j] = strides[j].cast<int64_t>();
          }
          args.out = out(result);
          args.out_stride = result_stride;
          args.coefficients = static_cast<const float*>(in(coefficients));
          args.noise_scale = static_cast<const float*>(in(noise_scale));
          args.seeds = static_cast<const int64_t*>(in(seeds));
          args.streams = static_cast<const int64_t*>(in(streams));
          args.rows = rows, args.count = count, args.dtype = DType(dtype), args.threads = threads;
          py::gil_scoped_release unlocked;
          kernels().linear_update(args);
        });
}

}  // namespace aigc
