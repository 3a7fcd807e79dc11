#include "bind/bind.h"
#include "bind/tensor.h"
#include "cpu/table.h"
#include "runtime/huge_pages.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels and loops of aigc_engine. Knows no framework: addresses, sizes and strides only.";
  m.def("isa", [] { return aigc::kernels().isa; }, "The ISA level whose kernels run.");
  m.def("force_isa", &aigc::force_isa, "Switches level; False when this build or machine lacks it.");
  m.def("isa_levels", [] {
    int count;
    const aigc::IsaLevel* levels = aigc::isa_levels(&count);
    py::list rows;
    for (int i = 0; i < count; ++i)
      rows.append(py::make_tuple(levels[i].name, levels[i].built, levels[i].supported));
    return rows;
  });
  m.def(
      "isa_products",
      [] {
        const aigc::IsaLevel& level = aigc::isa_level();
        return py::make_tuple(level.tiles, level.dots);
      },
      "Whether the level has bfloat16 tiles, and bfloat16 products faster than float32's.");
  m.def("poison_scratch", &aigc::poison_scratch, "For tests: fills scratch memory with NaN before its use.");
  m.def("available_cpus", &aigc::available_cpus, "CPUs in this process's affinity mask.");
  m.def("prefer_huge_pages",
        [](uintptr_t address, size_t bytes) { aigc::prefer_huge_pages(aigc::out(address), bytes); });
  m.def("use_openmp", &aigc::use_openmp, "Entry points of the OpenMP runtime whose workers run our chunks.");
  m.def("pool_workers", &aigc::pool_workers, "Worker threads of the pool in this process.");
  m.def("learn_tensors", &aigc::learn_tensors);
#ifdef AIGC_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  aigc::bind_activation(m);
  aigc::bind_attention(m);
  aigc::bind_ceiling(m);
  aigc::bind_conv(m);
  aigc::bind_diffusion(m);
  aigc::bind_embedding(m);
  aigc::bind_linear(m);
  aigc::bind_linear_update(m);
  aigc::bind_norm(m);
  aigc::bind_pointwise(m);
  aigc::bind_random(m);
  aigc::bind_recording(m);
  aigc::bind_resample(m);
  aigc::bind_decode(m);
}
