#include "bind/bind.h"
#include "bind/launch.h"

namespace aigc {

void bind_linear(py::module_& m) {
  py::class_<EpilogueArgs>(m, "Epilogue",
                           "What becomes of a product's sums (EpilogueArgs of csrc/cpu/args.h).")
      .def(py::init([](uintptr_t to, int64_t columns, int64_t out_stride, int dtype, uintptr_t bias, int act,
                       int gating, double slope) {
             EpilogueArgs e{};
             e.out = out(to), e.columns = columns, e.out_stride = out_stride, e.dtype = DType(dtype);
             e.bias = in(bias), e.act = Activation(act), e.gating = Gating(gating), e.slope = float(slope);
             e.rows_per_sample = 1;
             return e;
           }),
           py::arg("out"), py::arg("columns"), py::arg("out_stride"), py::arg("dtype"), py::arg("bias") = 0,
           py::arg("act") = 0, py::arg("gating") = 0, py::arg("slope") = 0.0)
      .def("set_samples", [](EpilogueArgs& e, int64_t rows) { e.rows_per_sample = rows; })
      .def("set_sample_bias", [](EpilogueArgs& e, uintptr_t bias,
                                 int64_t stride) { e.sample_bias = in(bias), e.sample_bias_stride = stride; })
      .def("set_gate",
           [](EpilogueArgs& e, uintptr_t gate, int64_t stride, bool per_sample) {
             e.gate = in(gate), e.gate_stride = stride, e.gate_per_sample = per_sample;
           })
      .def("set_scales",
           [](EpilogueArgs& e, uintptr_t scales, uintptr_t column_sums) {
             e.scales = static_cast<const float*>(in(scales));
             e.column_sums = static_cast<const int32_t*>(in(column_sums));
           })
      .def("set_residual", [](EpilogueArgs& e, uintptr_t residual, int64_t stride) {
        e.residual = in(residual), e.residual_stride = stride;
      });
  m.def("pack_weight", [](uintptr_t weight, uintptr_t packed, int64_t columns, int64_t depth, int dtype,
                          int product, int threads) {
    // Never recorded: a plan's weights are packed when it's made.
    py::gil_scoped_release unlocked;
    kernels().pack_weight({in(weight), out(packed), columns, depth, DType(dtype), Product(product), threads});
  });
  m.def("linear", [](uintptr_t x, int64_t x_stride, uintptr_t weight, int64_t rows, int64_t depth,
                     int product, const EpilogueArgs& epilogue, int threads) {
    launch(&KernelTable::linear,
           LinearArgs{in(x), x_stride, in(weight), rows, depth, Product(product), epilogue, threads});
  });
}

}  // namespace aigc
