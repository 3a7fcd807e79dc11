#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "bind/launch.h"

namespace aigc {

namespace {

// An input: address, channels, strides of batch, row and column.
using Input = std::array<int64_t, 5>;
using Pair = std::array<int64_t, 2>;

template <void (*KernelTable::*kernel)(const ConvArgs&)>
void bind_kernel(py::module_& m, const char* name) {
  const auto run = [](const std::vector<Input>& inputs, uintptr_t weight, std::array<int64_t, 3> size,
                      Pair out_size, Pair taps, Pair stride, Pair dilation, Pair padding, int64_t upsample,
                      int64_t groups, std::array<int64_t, 4> place, int product, const EpilogueArgs& epilogue,
                      int threads) {
    ConvArgs a{};
    for (size_t i = 0; i < inputs.size() && i < 2; ++i) {
      a.inputs[i] = in(uintptr_t(inputs[i][0])), a.channels[i] = inputs[i][1];
      for (int axis = 0; axis < 3; ++axis) a.strides[i][axis] = inputs[i][size_t(axis) + 2];
    }
    a.weight = in(weight);
    a.batch = size[0], a.height = size[1], a.width = size[2];
    a.out_height = out_size[0], a.out_width = out_size[1];
    for (size_t axis = 0; axis < 2; ++axis) {
      a.taps[axis] = taps[axis], a.stride[axis] = stride[axis], a.dilation[axis] = dilation[axis];
      a.padding[axis] = padding[axis];
    }
    a.upsample = upsample, a.groups = groups;
    for (size_t i = 0; i < 4; ++i) a.place[i] = place[i];
    a.product = Product(product), a.epilogue = epilogue, a.threads = threads;
    launch(kernel, a);
  };
  m.def(name, run, py::arg("inputs"), py::arg("weight"), py::arg("size"), py::arg("out_size"),
        py::arg("taps"), py::arg("stride"), py::arg("dilation"), py::arg("padding"), py::arg("upsample"),
        py::arg("groups"), py::arg("place"), py::arg("product"), py::arg("epilogue"), py::arg("threads"));
}

}  // namespace

void bind_conv(py::module_& m) {
  bind_kernel<&KernelTable::conv>(m, "conv");
  bind_kernel<&KernelTable::depthwise>(m, "depthwise");
  bind_kernel<&KernelTable::winograd>(m, "winograd");
}

}  // namespace aigc
