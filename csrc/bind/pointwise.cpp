#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bind/launch.h"
#include "bind/tensor.h"
#include "runtime/overlap.h"

namespace aigc {
namespace {

struct StepName {
  PointwiseStep kind;
  int operands;
};

const std::unordered_map<std::string_view, StepName>& step_names() {
  static const std::unordered_map<std::string_view, StepName> names = {
#define AIGC_NAME(name, operands) {#name, {PointwiseStep::name, operands}},
      AIGC_POINTWISE_STEPS(AIGC_NAME)
#undef AIGC_NAME
  };
  return names;
}

// An operand is the number of a value, or a float; false where it's neither.
bool read_operand(PyObject* operand, int64_t known, int place, PointwiseArgs::Step& step) {
  if (PyFloat_CheckExact(operand)) {
    step.values[place] = -1;
    step.constants[place] = float(PyFloat_AS_DOUBLE(operand));
    return true;
  }
  if (!PyLong_CheckExact(operand)) return false;
  int overflow;
  const long value = PyLong_AsLongAndOverflow(operand, &overflow);
  if (overflow || value < 0 || value >= known) return false;
  step.values[place] = int8_t(value);
  return true;
}

// A step of `known` values, the latest of which stands for a first operand that's missing.
bool read_step(PyObject* tuple, int64_t known, int64_t latest, PointwiseArgs::Step& step) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) < 1) return false;
  PyObject* const name = PyTuple_GET_ITEM(tuple, 0);
  Py_ssize_t length;
  const char* text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &length) : nullptr;
  if (!text) return PyErr_Clear(), false;
  const auto found = step_names().find(std::string_view(text, size_t(length)));
  if (found == step_names().end()) return false;
  step.kind = found->second.kind;
  std::fill(step.values, step.values + PointwiseArgs::kMaxOperands, int8_t(-1));
  const int given = int(PyTuple_GET_SIZE(tuple)) - 1, missing = found->second.operands - given;
  if (missing != 0 && missing != 1) return false;
  if (missing) step.values[0] = int8_t(latest);
  for (int i = 0; i < given; ++i)
    if (!read_operand(PyTuple_GET_ITEM(tuple, i + 1), known, i + missing, step)) return false;
  return true;
}

bool read_program(PyObject* program, PointwiseArgs& args) {
  if (!PyList_Check(program) && !PyTuple_Check(program)) return false;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(program);
  if (count > PointwiseArgs::kMaxSteps) return false;
  for (Py_ssize_t s = 0; s < count; ++s) {
    const int64_t known = args.num_inputs + s, latest = s ? known - 1 : 0;
    if (!read_step(PySequence_Fast_GET_ITEM(program, s), known, latest, args.steps[s])) return false;
  }
  args.num_steps = int(count);
  return true;
}

// Broadcast to the result's shape.
bool set_input(PointwiseArgs& args, int k, const TensorView& x) {
  const int lead = args.rank - x.ndim;
  if (lead < 0 || (!x.is_float32() && !x.is_bfloat16())) return false;
  StridedView& view = args.inputs[k];
  view.data = x.data, view.dtype = x.is_float32() ? DType::kFloat32 : DType::kBFloat16;
  for (int axis = 0; axis < args.rank; ++axis) {
    const int64_t size = axis < lead ? 1 : x.shape[axis - lead];
    if (size != 1 && size != args.shape[axis]) return false;
    view.strides[axis] = size == 1 ? 0 : x.strides[axis - lead];
  }
  return true;
}

bool set_result(PointwiseArgs& args, const TensorView& out) {
  if (out.ndim > kMaxRank || (!out.is_float32() && !out.is_bfloat16())) return false;
  args.rank = out.ndim;
  std::copy(out.shape, out.shape + out.ndim, args.shape);
  args.out.data = out.data, args.out.dtype = out.is_float32() ? DType::kFloat32 : DType::kBFloat16;
  std::copy(out.strides, out.strides + out.ndim, args.out.strides);
  return true;
}

int64_t numel(const PointwiseArgs& args) {
  int64_t count = 1;
  for (int axis = 0; axis < args.rank; ++axis) count *= args.shape[axis];
  return count;
}

void run(PointwiseArgs& args, int threads) {
  args.threads = threads;
  launch(&KernelTable::pointwise, args);
}

void refuse_overlap(const PointwiseArgs& args) {
  if (numel(args) == 0) return;
  if (!distinct(args.out, args.shape, args.rank))
    throw py::value_error("pointwise: out with elements that share memory, expected distinct ones; clone it");
  for (int k = 0; k < args.num_inputs; ++k)
    if (!separate(args.out, args.inputs[k], args.shape, args.rank))
      throw py::value_error("pointwise: out overlaps input " + std::to_string(k) +
                            ", expected the same view or memory of its own; clone the input");
}

// A tensor as the adapter gives it: address, sizes, strides, dtype.
struct Described {
  std::vector<int64_t> shape, strides;
  TensorView view{};

  explicit Described(const py::tuple& parts) {
    for (const py::handle size : py::tuple(parts[1])) shape.push_back(size.cast<int64_t>());
    for (const py::handle stride : py::tuple(parts[2])) strides.push_back(stride.cast<int64_t>());
    view.data = const_cast<void*>(in(parts[0].cast<uintptr_t>()));
    view.ndim = int32_t(shape.size());
    view.shape = shape.data(), view.strides = strides.data();
    const bool wide = DType(parts[3].cast<int>()) == DType::kFloat32;
    view.type_code = wide ? 2 : 4, view.bits = wide ? 32 : 16, view.lanes = 1;
  }
};

void pointwise(const py::object& program, const py::tuple& result, const py::list& inputs, int threads) {
  PointwiseArgs args{};
  const Described out(result);
  if (inputs.size() < 1 || inputs.size() > PointwiseArgs::kMaxInputs || !set_result(args, out.view))
    throw py::value_error("pointwise: expected 1 to 8 tensors of at most 8 axes");
  args.num_inputs = int(inputs.size());
  for (int k = 0; k < args.num_inputs; ++k) {
    const Described x(inputs[size_t(k)].cast<py::tuple>());
    if (!set_input(args, k, x.view))
      throw py::value_error("pointwise: tensor " + std::to_string(k) +
                            " of another shape, expected one that broadcasts to out's");
  }
  if (!read_program(program.ptr(), args))
    throw py::value_error("pointwise: program, expected up to 24 steps as ops.pointwise takes them");
  refuse_overlap(args);
  run(args, threads);
}

// torch's objects, never released.
struct Known {
  PyObject *empty_like, *empty, *float32, *bfloat16, *preserve, *contiguous, *channels_last;
  PyObject *dtype_name, *format_names, *out_dtype, *memory_format;  // keywords
} known;

void learn_results(const py::args& objects) {
  PyObject** const places[] = {&known.empty_like, &known.empty,      &known.float32,      &known.bfloat16,
                               &known.preserve,   &known.contiguous, &known.channels_last};
  for (size_t i = 0; i < std::size(places); ++i) *places[i] = py::object(objects[i]).inc_ref().ptr();
  known.out_dtype = PyUnicode_InternFromString("out_dtype");
  known.memory_format = PyUnicode_InternFromString("memory_format");
  known.dtype_name = py::make_tuple("dtype").release().ptr();
  known.format_names = py::make_tuple("dtype", "memory_format").release().ptr();
}

// The op's keywords; null where not given.
struct Keywords {
  PyObject *out_dtype = nullptr, *memory_format = nullptr;

  bool read(PyObject* const* values, PyObject* names) {
    for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); ++k) {
      PyObject* const name = PyTuple_GET_ITEM(names, k);
      if (name != known.out_dtype && name != known.memory_format) return false;
      (name == known.out_dtype ? out_dtype : memory_format) = values[k];
    }
    if (out_dtype == Py_None) out_dtype = nullptr;
    if (memory_format == known.preserve) memory_format = nullptr;
    return (!out_dtype || out_dtype == known.float32 || out_dtype == known.bfloat16) &&
           (!memory_format || memory_format == known.contiguous || memory_format == known.channels_last);
  }
};

// The shape that all tensors broadcast to.
bool broadcast(const TensorView* views, int count, PointwiseArgs& args) {
  args.rank = 0;
  for (int k = 0; k < count; ++k) args.rank = std::max(args.rank, int(views[k].ndim));
  if (args.rank > kMaxRank) return false;
  std::fill(args.shape, args.shape + args.rank, int64_t(1));
  for (int k = 0; k < count; ++k)
    for (int i = 0; i < views[k].ndim; ++i) {
      int64_t& size = args.shape[args.rank - views[k].ndim + i];
      const int64_t own = views[k].shape[i];
      if (own != 1 && size != 1 && own != size) return false;
      if (own != 1) size = own;
    }
  return true;
}

// A tensor for the result: like the first where it has the shape, else contiguous, unless a format is given.
py::object new_result(PyObject* first, const TensorView& x, const PointwiseArgs& args, PyObject* dtype,
                      PyObject* format) {
  const bool alike = x.ndim == args.rank && std::equal(x.shape, x.shape + x.ndim, args.shape);
  PyObject* result;
  if (alike && !format) {
    PyObject* const values[] = {first, dtype};
    const bool same = dtype == (x.is_float32() ? known.float32 : known.bfloat16);
    result = PyObject_Vectorcall(known.empty_like, values, 1, same ? nullptr : known.dtype_name);
  } else {
    py::tuple sizes{size_t(args.rank)};
    for (int axis = 0; axis < args.rank; ++axis) sizes[size_t(axis)] = args.shape[axis];
    PyObject* const values[] = {sizes.ptr(), dtype, format};
    result = PyObject_Vectorcall(known.empty, values, 1, format ? known.format_names : known.dtype_name);
  }
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

constexpr int64_t kHuge = int64_t(32) << 20;  // bytes: left to the adapter, which asks for huge pages

py::object pointwise_of(PyObject* program, PyObject* const* tensors, int count, const Keywords& keywords) {
  const auto declined = [] { return py::reinterpret_borrow<py::object>(Py_NotImplemented); };
  PointwiseArgs args{};
  TensorView views[PointwiseArgs::kMaxInputs], out;
  bool wide = false;
  for (int k = 0; k < count; ++k) {
    if (!strided(tensors[k], views[k])) return declined();
    if (!views[k].is_float32() && !views[k].is_bfloat16()) return declined();
    wide |= views[k].is_float32();
  }
  args.num_inputs = count;
  if (!read_program(program, args) || !broadcast(views, count, args)) return declined();
  if (numel(args) * 4 >= kHuge) return declined();
  if (keywords.memory_format == known.channels_last && args.rank != 4) return declined();
  PyObject* const dtype = keywords.out_dtype ? keywords.out_dtype : wide ? known.float32 : known.bfloat16;
  py::object result = new_result(tensors[0], views[0], args, dtype, keywords.memory_format);
  if (!strided(result.ptr(), out) || !set_result(args, out)) return declined();
  for (int k = 0; k < count; ++k)
    if (!set_input(args, k, views[k])) return declined();
  run(args, numel(args) <= PointwiseArgs::kGrain / 8 ? 1 : thread_count());
  return result;
}

// The whole call, as `linear_update_direct` is: through the op's checks and its adapter a small one takes 20
// us.
PyObject* pointwise_direct(PyObject*, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
  Keywords keywords;
  const Py_ssize_t count = positional - 1;
  if (count < 1 || count > PointwiseArgs::kMaxInputs || !known.empty ||
      !keywords.read(values + positional, names))
    return Py_NewRef(Py_NotImplemented);
  try {
    return pointwise_of(values[0], values + 1, int(count), keywords).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef direct_method = {"pointwise_direct",
                             reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&pointwise_direct)),
                             METH_FASTCALL | METH_KEYWORDS, nullptr};

}  // namespace

void bind_pointwise(py::module_& m) {
  m.def("pointwise", &pointwise);
  m.def("learn_results", &learn_results);
  m.attr("pointwise_direct") = py::reinterpret_steal<py::object>(PyCFunction_New(&direct_method, nullptr));
}

}  // namespace aigc
