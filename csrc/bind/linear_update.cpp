#include <algorithm>
#include <initializer_list>

#include "bind/launch.h"
#include "bind/tensor.h"
#include "cuda/launch.h"

namespace aigc {
namespace {

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
  launch(&KernelTable::linear_update, args);
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
bool numbers(PyObject* tensor, std::initializer_list<int64_t> sizes, TensorView& view) {
  if (!plain(tensor, view) || !view.is_float32() || view.ndim != int(sizes.size())) return false;
  return std::equal(sizes.begin(), sizes.end(), view.shape);
}

bool row_keys(PyObject* tensor, int64_t rows, TensorView& view) {
  return tensor && plain(tensor, view) && view.is_int64() && view.ndim == 1 && view.shape[0] == rows;
}

bool alike(const TensorView& a, const TensorView& b) {
  return a.type_code == b.type_code && a.bits == b.bits && a.ndim == b.ndim &&
         std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// The op's arguments, by place or by name; null where there's none.
struct Given {
  PyObject *terms, *coefficients, *noise_scale, *seeds, *streams, *out;

  static constexpr int kCount = 6, kPositional = 2;

  // False where they aren't the op's. The names in a call are interned; others (of a dict made of strings
  // put together) count as unknown.
  bool read(PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    static PyObject* const known[kCount] = {
        PyUnicode_InternFromString("terms"),       PyUnicode_InternFromString("coefficients"),
        PyUnicode_InternFromString("noise_scale"), PyUnicode_InternFromString("seeds"),
        PyUnicode_InternFromString("streams"),     PyUnicode_InternFromString("out")};
    if (positional > kPositional) return false;
    PyObject* found[kCount] = {};
    std::copy(values, values + positional, found);
    for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); ++k) {
      const auto place = std::find(known, known + kCount, PyTuple_GET_ITEM(names, k)) - known;
      if (place == kCount || found[place]) return false;
      found[place] = values[positional + k];
    }
    for (PyObject*& value : found)
      if (value == Py_None) value = nullptr;
    *this = {found[0], found[1], found[2], found[3], found[4], found[5]};
    return terms && coefficients;
  }
};

// Fills in all but the result from arguments that are plain; `x` is the first term.
bool plain_update(const Given& given, TensorView& x, LinearUpdateArgs& args) {
  if (!PyList_Check(given.terms) && !PyTuple_Check(given.terms)) return false;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(given.terms);
  PyObject** const terms = PySequence_Fast_ITEMS(given.terms);
  if (count < 1 || count > LinearUpdateArgs::kMaxTerms) return false;

  TensorView other;
  if (!plain(terms[0], x) || x.ndim < 1 || x.numel() == 0) return false;
  if (!x.is_float32() && !x.is_bfloat16()) return false;
  args.dtype = x.is_float32() ? DType::kFloat32 : DType::kBFloat16;
  args.rows = x.shape[0], args.count = x.numel() / args.rows, args.num_terms = int(count);
  args.terms[0] = x.data, args.term_strides[0] = args.count;
  for (int j = 1; j < count; ++j) {
    if (!plain(terms[j], other) || !alike(other, x)) return false;
    args.terms[j] = other.data, args.term_strides[j] = args.count;
  }
  if (!numbers(given.coefficients, {args.rows, count}, other)) return false;
  args.coefficients = static_cast<const float*>(other.data);

  if (!given.noise_scale) return !given.seeds && !given.streams;
  if (!numbers(given.noise_scale, {args.rows}, other)) return false;
  args.noise_scale = static_cast<const float*>(other.data);
  if (!row_keys(given.seeds, args.rows, other)) return false;
  args.seeds = static_cast<const int64_t*>(other.data);
  if (!row_keys(given.streams, args.rows, other)) return false;
  args.streams = static_cast<const int64_t*>(other.data);
  return true;
}

// Asking for the thread count takes 0.6 us, so only where the kernel might split the work.
int threads_for(const LinearUpdateArgs& args) {
  const int64_t grain = args.noise_scale ? LinearUpdateArgs::kNoiseGrain : LinearUpdateArgs::kGrain;
  return args.rows * args.count <= grain ? 1 : thread_count();
}

py::object update(const Given& given) {
  py::object result;
  TensorView x, out;
  LinearUpdateArgs args{};
  if (!plain_update(given, x, args)) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  if (given.out) {
    result = py::reinterpret_borrow<py::object>(given.out);
  } else {
    result = empty_like(PySequence_Fast_GET_ITEM(given.terms, 0));
  }
  if (!plain(result.ptr(), out) || !alike(out, x))
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  args.out = out.data, args.out_stride = args.count, args.threads = threads_for(args);
  launch(&KernelTable::linear_update, args);
  return result;
}

// The whole call, checks included, where all is plain; NotImplemented otherwise, and the op's own checks say
// what is wrong or its adapter makes it plain. Through them a call of 16,384 elements took 13 us, 9 of which
// were Python's. Not through pybind11, which takes 0.5 us to look for the names.
PyObject* linear_update_direct(PyObject*, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
  Given given;
  if (!given.read(values, positional, names)) return Py_NewRef(Py_NotImplemented);
  try {
    return update(given).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef direct_method = {
    "linear_update_direct",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&linear_update_direct)),
    METH_FASTCALL | METH_KEYWORDS, nullptr};

}  // namespace

void bind_linear_update(py::module_& m) {
  m.def("linear_update", &linear_update);
  m.attr("linear_update_direct") =
      py::reinterpret_steal<py::object>(PyCFunction_New(&direct_method, nullptr));
#ifdef AIGC_WITH_CUDA
  m.def("linear_update_cuda", &linear_update_on_gpu);
#endif
}

}  // namespace aigc
