#include <pybind11/stl.h>

#include "bind/bind.h"
#include "bind/watch.h"
#include "cpu/table.h"
#include "cuda/launch.h"
#include "runtime/denoise_loop.h"
#include "runtime/recorded_denoiser.h"

namespace aigc {
namespace {

// evaluate(k) returns the addresses of its output: [cond] or [cond, uncond], (rows, count) float32 each.
class PythonDenoiser : public Denoiser {
 public:
  PythonDenoiser(py::function evaluate, bool guided)
      : evaluate_(std::move(evaluate)), outputs_(guided ? 2 : 1) {}

  bool guided() const override { return outputs_ == 2; }
  int64_t room(int64_t, int64_t) const override { return 0; }

  Outputs evaluate(int64_t k, int64_t, int64_t, const float*, const float*, float*, Poll&) const override {
    py::gil_scoped_acquire locked;
    const auto found = evaluate_(k).cast<std::vector<uintptr_t>>();
    if (found.size() != outputs_)
      throw py::value_error("denoise_loop: outputs " + std::to_string(found.size()) + ", expected " +
                            std::to_string(outputs_));
    return {static_cast<const float*>(in(found[0])),
            guided() ? static_cast<const float*>(in(found[1])) : nullptr};
  }

 private:
  py::function evaluate_;
  size_t outputs_;
};

// What memory safety needs: pointers that aren't there have zero coefficients, and active rows only ever
// leave.
void check(const SolverTable& table, bool guided) {
  for (int64_t k = 0; k < table.evaluations; ++k) {
    if (table.active[k] < 1 || table.active[k] > (k ? table.active[k - 1] : table.rows))
      throw py::value_error("denoise_loop: active rows, expected 1 to B and never more than before");
    for (int64_t b = 0; b < table.active[k]; ++b) {
      const float* c = table.coefficients + (k * table.rows + b) * SolverTable::kTerms;
      if (k == 0 && (c[3] != 0.0f || c[4] != 0.0f || c[5] != 0.0f))
        throw py::value_error("denoise_loop: coefficients of history at evaluation 0, expected zeros");
      if (!guided && (c[2] != 0.0f || c[5] != 0.0f))
        throw py::value_error("denoise_loop: coefficients of uncond without guidance, expected zeros");
    }
  }
}

py::tuple run_denoise_loop(const py::object& model, uintptr_t states, int64_t count, uintptr_t timesteps,
                           uintptr_t coefficients, uintptr_t noise_scale, uintptr_t streams,
                           const std::vector<int64_t>& active, int64_t rows, uintptr_t seeds, bool guided,
                           const py::object& on_step, Mailbox* control, int threads) {
  const SolverTable table{int64_t(active.size()),
                          rows,
                          static_cast<const float*>(in(timesteps)),
                          static_cast<const float*>(in(coefficients)),
                          static_cast<const float*>(in(noise_scale)),
                          static_cast<const int64_t*>(in(streams)),
                          active.data()};
  const bool native = py::isinstance<Denoiser>(model);
  if (native && model.cast<const Denoiser*>()->guided() != guided)
    throw py::value_error(std::string("denoise_loop: the native denoiser's outputs ") +
                          (guided ? "1, expected 2" : "2, expected 1"));
  check(table, guided);
  PythonWatch watch(on_step);
  Mailbox own;
  const auto run = [&](const Denoiser& denoiser) {
    py::gil_scoped_release unlocked;
    return denoise_loop(denoiser, table, static_cast<float*>(out(states)), count,
                        static_cast<const int64_t*>(in(seeds)), threads, watch, control ? *control : own);
  };
  const LoopResult result =
      native ? run(*model.cast<const Denoiser*>()) : run(PythonDenoiser(model.cast<py::function>(), guided));
  return py::make_tuple(int(result.stop), result.evaluation, result.row);
}

// schedules: (target, pitch, source, rows, bytes) each; outputs: 2 addresses.
void add_program(RecordedDenoiser& denoiser, int64_t rows, int64_t first,
                 const std::vector<std::tuple<uintptr_t, int64_t, uintptr_t, int64_t, int64_t>>& schedules,
                 const std::vector<const Recording*>& enter, const std::vector<const Recording*>& network,
                 const std::vector<const Recording*>& leave, const std::vector<uintptr_t>& outputs) {
  if (enter.size() != size_t(kStates) || leave.size() != 2 || outputs.size() != 2)
    throw py::value_error("RecordedDenoiser.add: expected 3 ways in, 2 ways out and 2 outputs");
  RecordedDenoiser::Program program{first, {}, enter, network, leave, {}};
  for (const auto& [target, pitch, source, count, bytes] : schedules)
    program.schedules.push_back(
        {static_cast<char*>(out(target)), pitch, static_cast<const char*>(in(source)), count, bytes});
  for (const uintptr_t output : outputs) program.outputs.push_back(static_cast<const float*>(in(output)));
  denoiser.add(rows, std::move(program));
}

}  // namespace

void bind_diffusion(py::module_& m) {
  py::class_<Denoiser>(m, "Denoiser", "A model that runs without Python.");
  py::class_<LinearDenoiser, Denoiser>(m, "LinearDenoiser", "out = slope[k] x + offset[k] at evaluation k.")
      .def(py::init<std::vector<float>, std::vector<float>, int>());
  py::class_<RecordedDenoiser, Denoiser>(m, "RecordedDenoiser", "A network that was recorded.")
      .def(py::init<bool>(), py::arg("guided"))
      .def("add", &add_program, py::keep_alive<1, 5>(), py::keep_alive<1, 6>(), py::keep_alive<1, 7>(),
           "What runs for a number of rows, whose first evaluation is `first`.");
  py::class_<Mailbox>(m, "LoopControl", "Where a run is, readable from any thread, and the way to cancel it.")
      .def(py::init())
      .def_property_readonly(
          "done", [](const Mailbox& box) { return box.done.load(); }, "Evaluations done.")
      .def_property_readonly("cancelled", [](const Mailbox& box) { return box.cancelled.load(); })
      .def(
          "cancel", [](Mailbox& box) { box.cancelled.store(true); }, "Stops the run at its next evaluation.");
  m.def("denoise_loop", &run_denoise_loop);
}

}  // namespace aigc
