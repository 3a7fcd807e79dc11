// Python sees addresses, sizes and strides only; aigc_engine/native/ turns tensors into them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace aigc {

namespace py = pybind11;

inline const void* in(uintptr_t address) { return reinterpret_cast<const void*>(address); }
inline void* out(uintptr_t address) { return reinterpret_cast<void*>(address); }

void bind_activation(py::module_& m);
void bind_attention(py::module_& m);
void bind_ceiling(py::module_& m);
void bind_conv(py::module_& m);
void bind_diffusion(py::module_& m);
void bind_embedding(py::module_& m);
void bind_linear(py::module_& m);
void bind_linear_update(py::module_& m);
void bind_norm(py::module_& m);
void bind_pointwise(py::module_& m);
void bind_random(py::module_& m);
void bind_recording(py::module_& m);
void bind_resample(py::module_& m);
void bind_decode(py::module_& m);

}  // namespace aigc
