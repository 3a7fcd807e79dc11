// The denoising loop: evaluate the model, update the state, check it, report; the same steps for every
// solver.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "runtime/poll.h"

namespace aigc {

constexpr int kStates = 3;  // x_{k-1}, x_k and x_{k+1} take turns: evaluation k reads state k % 3

// diffusion/solver.py's UpdateTable: E evaluations of up to B rows, and of those rows [0, active[k]) at k.
// x_{k+1} = c0 x_k + c1 cond_k + c2 uncond_k + c3 x_{k-1} + c4 cond_{k-1} + c5 uncond_{k-1} + s noise.
struct SolverTable {
  static constexpr int kTerms = 6;
  int64_t evaluations, rows;
  const float* timesteps;     // (E, B)
  const float* coefficients;  // (E, B, 6)
  const float* noise_scale;   // (E, B)
  const int64_t* streams;     // (E, B)
  const int64_t* active;      // (E)
};

// Where a run is, for any thread to read, and the flag by which any thread stops it.
struct Mailbox {
  std::atomic<int64_t> done{0};  // evaluations
  std::atomic<bool> cancelled{false};
};

// A model. It keeps no state of a run, so that runs may share it.
class Denoiser {
 public:
  struct Outputs {
    const float* cond;
    const float* uncond;  // null without guidance
  };
  virtual ~Denoiser() = default;
  // Whether there is an unconditional output too.
  virtual bool guided() const { return false; }
  // Floats of memory wanted per evaluation.
  virtual int64_t room(int64_t rows, int64_t count) const = 0;
  // The output on rows [0, rows) of x. It must stay as it is until evaluation k + 1 has been used too, for
  // solvers with history read it again; `room` does.
  virtual Outputs evaluate(int64_t k, int64_t rows, int64_t count, const float* x, const float* t,
                           float* room, Poll& poll) const = 0;
};

// out = slope[k] x + offset[k]: the exact denoiser of Gaussian data, and the cheapest for measuring the loop
// itself.
class LinearDenoiser : public Denoiser {
 public:
  LinearDenoiser(std::vector<float> slope, std::vector<float> offset, int threads);
  int64_t room(int64_t rows, int64_t count) const override { return rows * count; }
  Outputs evaluate(int64_t k, int64_t rows, int64_t count, const float* x, const float* t, float* room,
                   Poll& poll) const override;

 private:
  std::vector<float> slope_, offset_;
  int threads_;
};

struct LoopResult {
  enum Stop { kDone, kNotFinite, kCancelled } stop;
  int64_t evaluation;  // evaluations done when cancelled; the one that gave NaN or infinity
  int64_t row;         // the first row that did
};

// states: (3, rows, count) float32, the starting state in states[0]; seeds: (rows). Row b's result is in
// state e % 3, e its number of evaluations.
LoopResult denoise_loop(const Denoiser& denoiser, const SolverTable& table, float* states, int64_t count,
                        const int64_t* seeds, int threads, Watch& watch, Mailbox& mailbox);

}  // namespace aigc
