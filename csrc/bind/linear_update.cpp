#include <algorithm>
#include <initializer_list>

#include "bind/bind.h"
#include "bind/tensor.h"
#include "cpu/table.h"
#include "cuda/launch.h"

namespace aigc {
namespace {

constexpr int64_t kSerial = 8192;  // elements that no kernel splits: asking for the thread count takes 0.6 us

// noise: no addresses, or those of noise_scale, seeds and streams.
LinearUpdateArgs update_args(const py::list& terms, const py::list& strides, uintptr_t result,
                             int64_t result_stride, uintptr_t coefficients, const py::sequence& noise,
                             int64_t rows, int64_t count, int dtype) {
  if (terms.size() > LinearUpdateArgs::kMaxTerms || strides.size() != terms.size())
    throw py::value_error("linear_update: terms and strides, expected as many, at most 8");
  LinearUpdateArgs args{};
  args.num_terms = int(terms.size());
  for (int j = 0; j < args.num_terms; ++j) {
    args.terms[j] = in(terms[size_t(j)].cast<uintptr_t>());
    args.term_strides[j] = strides[size_t(j)].cast<int64_t>();
  }
  args.out = out(result);
  args.out_stride = result_stride;
  args.coefficients = static_cast<const float*>(in(coefficients));
  if (noise.size() == 3) {
    args.noise_scale = static_cast<const float*>(in(noise[0].cast<uintptr_t>()));
    args.seeds = static_cast<const int64_t*>(in(noise[1].cast<uintptr_t>()));
    args.streams = static_cast<const int64_t*>(in(noise[2].cast<uintptr_t>()));
  }
  args.rows = rows, args.count = count, args.dtype = DType(dtype);
  return args;
}

void linear_update(const py::list& terms, const py::list& strides, uintptr_t result, int64_t result_stride,
                   uintptr_t coefficients, const py::sequence& noise, int64_t rows, int64_t count, int dtype,
                   int threads) {
  LinearUpdateArgs args =
      update_args(terms, strides, result, result_stride, coefficients, noise, rows, count, dtype);
  args.threads = threads;
  py::gil_scoped_release unlocked;
  kernels().linear_update(args);
}

#ifdef AIGC_WITH_CUDA
void linear_update_on_gpu(const py::list& terms, const py::list& strides, uintptr_t result,
                          int64_t result_stride, uintptr_t coefficients, const py::sequence& noise,
                          int64_t rows, int64_t count, int dtype, int device, uintptr_t stream) {
  const LinearUpdateArgs args =
      update_args(terms, strides, result, result_stride, coefficients, noise, rows, count, dtype);
  if (const char* error = linear_update_cuda(args, device, out(stream)))
    throw std::runtime_error(std::string("linear_update: CUDA says ") + error);
}
#endif

// A float32 tensor of these sizes, one number per row or per row and term.
bool numbers(const py::object& tensor, std::initializer_list<int64_t> sizes, TensorView& view) {
  if (!plain(tensor.ptr(), view) || !view.is_float32() || view.ndim != int(sizes.size())) return false;
  return std::equal(sizes.begin(), sizes.end(), view.shape);
}

bool row_keys(const py::object& tensor, int64_t rows, TensorView& view) {
  return plain(tensor.ptr(), view) && view.is_int64() && view.ndim == 1 && view.shape[0] == rows;
}

bool alike(const TensorView& a, const TensorView& b) {
  return a.type_code == b.type_code && a.bits == b.bits && a.ndim == b.ndim &&
         std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// The whole call, checks included, where all is plain; NotImplemented otherwise, and the op's own checks say
// what is wrong or its adapter makes it plain. Through them a call of 16,384 elements took 13 us, 9 of which
// were Python's.
py::object linear_update_direct(const py::object& terms, const py::object& coefficients,
                                const py::object& noise_scale, const py::object& seeds,
                                const py::object& streams, const py::object& result) {
  const py::object declined = py::reinterpret_borrow<py::object>(Py_NotImplemented);
  if (!PyList_Check(terms.ptr()) && !PyTuple_Check(terms.ptr())) return declined;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(terms.ptr());
  PyObject** const items = PySequence_Fast_ITEMS(terms.ptr());
  if (count < 1 || count > LinearUpdateArgs::kMaxTerms) return declined;

  LinearUpdateArgs args{};
  TensorView x, other;
  if (!plain(items[0], x) || x.ndim < 1 || x.numel() == 0) return declined;
  if (!x.is_float32() && !x.is_bfloat16()) return declined;
  args.dtype = x.is_float32() ? DType::kFloat32 : DType::kBFloat16;
  args.rows = x.shape[0], args.count = x.numel() / args.rows, args.num_terms = int(count);
  for (int j = 0; j < count; ++j) {
    if (!plain(items[j], other) || !alike(other, x)) return declined;
    args.terms[j] = other.data, args.term_strides[j] = args.count;
  }
  if (!numbers(coefficients, {args.rows, count}, other)) return declined;
  args.coefficients = static_cast<const float*>(other.data);

  if (!noise_scale.is_none()) {
    if (!numbers(noise_scale, {args.rows}, other)) return declined;
    args.noise_scale = static_cast<const float*>(other.data);
    if (!row_keys(seeds, args.rows, other)) return declined;
    args.seeds = static_cast<const int64_t*>(other.data);
    if (!row_keys(streams, args.rows, other)) return declined;
    args.streams = static_cast<const int64_t*>(other.data);
  } else if (!seeds.is_none() || !streams.is_none()) {
    return declined;
  }

  const py::object target = result.is_none() ? empty_like(items[0]) : result;
  if (!plain(target.ptr(), other) || !alike(other, x)) return declined;
  args.out = other.data, args.out_stride = args.count;
  args.threads = args.rows * args.count <= kSerial ? 1 : thread_count();
  {
    py::gil_scoped_release unlocked;
    kernels().linear_update(args);
  }
  return target;
}

}  // namespace

void bind_linear_update(py::module_& m) {
  m.def("linear_update", &linear_update);
  m.def("linear_update_direct", &linear_update_direct, py::arg("terms"), py::arg("coefficients"),
        py::kw_only(), py::arg("noise_scale") = py::none(), py::arg("seeds") = py::none(),
        py::arg("streams") = py::none(), py::arg("out") = py::none());
#ifdef AIGC_WITH_CUDA
  m.def("linear_update_cuda", &linear_update_on_gpu);
#endif
}

}  // namespace aigc
