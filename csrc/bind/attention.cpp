#include "cpu/attention.h"

#include <pybind11/stl.h>

#include "bind/bind.h"
#include "bind/launch.h"

namespace aigc {

namespace {

using Strides = std::array<int64_t, 4>;

HeadsView view(uintptr_t address, const Strides& strides) {
  return {out(address), strides[0], strides[1], strides[2]};
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<AttentionArgs>(m, "Attention", "A call of attention (AttentionArgs of csrc/cpu/args.h).")
      .def(py::init([](int64_t batch, int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys,
                       int64_t head_dim, double scale, bool causal, int dtype, int product) {
             AttentionArgs a{};
             a.batch = batch, a.heads = heads, a.kv_heads = kv_heads, a.queries = queries, a.keys = keys;
             a.head_dim = head_dim, a.scale = scale, a.causal = causal;
             a.dtype = DType(dtype), a.product = Product(product);
             return a;
           }),
           py::arg("batch"), py::arg("heads"), py::arg("kv_heads"), py::arg("queries"), py::arg("keys"),
           py::arg("head_dim"), py::arg("scale"), py::arg("causal"), py::arg("dtype"), py::arg("product"))
      .def("set_mask",
           [](AttentionArgs& a, int kind, uintptr_t mask, const Strides& strides) {
             a.mask_kind = MaskKind(kind), a.mask = in(mask);
             for (int i = 0; i < 4; ++i) a.mask_strides[i] = strides[i];
           })
      .def("workspace", &attention_workspace, "Bytes of packed keys and values that run() needs.")
      .def("run", [](AttentionArgs& a, uintptr_t q, const Strides& q_strides, uintptr_t k,
                     const Strides& k_strides, uintptr_t v, const Strides& v_strides, uintptr_t to,
                     const Strides& out_strides, uintptr_t workspace, int threads) {
        a.q = view(q, q_strides), a.k = view(k, k_strides), a.v = view(v, v_strides);
        a.out = view(to, out_strides);
        a.workspace = out(workspace), a.workspace_bytes = attention_workspace(a), a.threads = threads;
        launch(&KernelTable::attention, a);
      });
}

}  // namespace aigc
