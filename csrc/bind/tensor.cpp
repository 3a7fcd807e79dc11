#include "bind/tensor.h"

namespace aigc {
namespace {

// The head of DLPackExchangeAPI.
struct ExchangeTable {
  struct {
    uint32_t major, minor;
  } version;
  ExchangeTable* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, TensorView* out);  // may be null
};

constexpr uint32_t kMajor = 1;

// Never released: they live as long as the interpreter.
struct Known {
  PyObject* type = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* threads = nullptr;
  PyObject* requires_grad = nullptr;  // the attribute's name
  const ExchangeTable* table = nullptr;
} known;

const ExchangeTable* table_of(const py::type& type) {
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (table && table->version.major != kMajor) table = table->previous;
  return table && table->tensor_from_object ? table : nullptr;
}

bool needs_gradient(PyObject* tensor) {
  PyObject* answer = PyObject_GetAttr(tensor, known.requires_grad);
  if (!answer) throw py::error_already_set();
  Py_DECREF(answer);
  return answer != Py_False;
}

}  // namespace

bool TensorView::contiguous() const {
  int64_t wanted = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != wanted) return false;
    wanted *= shape[i];
  }
  return true;
}

int64_t TensorView::numel() const {
  int64_t count = 1;
  for (int i = 0; i < ndim; ++i) count *= shape[i];
  return count;
}

void learn_tensors(const py::type& type, const py::object& empty_like, const py::object& threads) {
  known.type = type.inc_ref().ptr();
  known.empty_like = empty_like.inc_ref().ptr();
  known.threads = threads.inc_ref().ptr();
  known.requires_grad = PyUnicode_InternFromString("requires_grad");
  known.table = table_of(type);
}

bool strided(PyObject* tensor, TensorView& view) {
  if (!known.table || reinterpret_cast<PyObject*>(Py_TYPE(tensor)) != known.type) return false;
  if (known.table->tensor_from_object(tensor, &view) != 0) {
    PyErr_Clear();  // a wrapper without memory of its own (vmap, for one)
    return false;
  }
  view.data = static_cast<char*>(view.data) + view.byte_offset;
  return view.on_cpu() && view.lanes == 1 && !needs_gradient(tensor);
}

bool plain(PyObject* tensor, TensorView& view) { return strided(tensor, view) && view.contiguous(); }

py::object empty_like(PyObject* tensor) {
  return py::reinterpret_steal<py::object>(PyObject_CallOneArg(known.empty_like, tensor));
}

int thread_count() { return py::reinterpret_steal<py::int_>(PyObject_CallNoArgs(known.threads)).cast<int>(); }

}  // namespace aigc
