#include "bind/launch.h"

namespace aigc {
namespace {

void fill(int64_t* to, const py::tuple& from) {
  for (size_t i = 0; i < from.size() && i < 4; ++i) to[i] = from[i].cast<int64_t>();
}

}  // namespace

void bind_resample(py::module_& m) {
  m.def("resize", [](uintptr_t x, const py::tuple& shape, const py::tuple& strides, uintptr_t y,
                     const py::tuple& out_shape, const py::tuple& out_strides, bool bilinear,
                     bool align_corners, int dtype, int threads) {
    int64_t sizes[4] = {}, out_sizes[4] = {};
    ResizeArgs args{};
    fill(sizes, shape), fill(out_sizes, out_shape);
    fill(args.x_strides, strides), fill(args.out_strides, out_strides);
    args.x = in(x), args.out = out(y);
    args.batch = sizes[0], args.channels = sizes[1], args.height = sizes[2], args.width = sizes[3];
    args.out_height = out_sizes[2], args.out_width = out_sizes[3];
    args.bilinear = bilinear, args.align_corners = align_corners;
    args.dtype = DType(dtype), args.threads = threads;
    launch(&KernelTable::resize, args);
  });
}

}  // namespace aigc
