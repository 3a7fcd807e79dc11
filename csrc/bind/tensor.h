// Tensors read through DLPack's C exchange table (DLPack 1.3, `__dlpack_c_exchange_api__` of the tensor's
// type; PyTorch has it from 2.10 on): some 20 ns a tensor, where Python's attributes take ten times that.
// References: DLPack, the stable C ABI for tensors, https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include "bind/bind.h"
#include "cpu/args.h"

namespace aigc {

// DLTensor of the ABI.
struct TensorView {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t type_code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;

  bool is(uint8_t code, uint8_t width) const { return type_code == code && bits == width; }
  bool is_float32() const { return is(2, 32); }
  bool is_bfloat16() const { return is(4, 16); }
  bool is_int64() const { return is(0, 64); }
  bool on_cpu() const { return device_type == 1; }
  bool contiguous() const;
  int64_t numel() const;
};

// Learns the tensor type, how to make a tensor like another, and where the thread count is asked for. Without
// the exchange table nothing is plain.
void learn_tensors(const py::type& type, const py::object& empty_like, const py::object& threads);

// Fills `view` from a contiguous CPU tensor of exactly the learned type that needs no gradient; otherwise
// returns false with no exception set.
bool plain(PyObject* tensor, TensorView& view);

// The same without asking that it be contiguous.
bool strided(PyObject* tensor, TensorView& view);

py::object empty_like(PyObject* tensor);
int thread_count();

}  // namespace aigc
