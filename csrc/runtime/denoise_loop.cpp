#include "runtime/denoise_loop.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/table.h"
#include "runtime/thread_pool.h"

namespace aigc {
namespace {

// Elements between polls, some 10 ms of the most expensive update.
constexpr int64_t kStretch = int64_t(1) << 22;

// Calls body(first row, last row) on stretches of rows, polling between them.
template <class F>
void by_stretches(int64_t rows, int64_t count, Poll& poll, const F& body) {
  const int64_t step = std::max<int64_t>(1, kStretch / std::max<int64_t>(1, count));
  for (int64_t first = 0; first < rows; first += step) {
    body(first, std::min(rows, first + step));
    poll();
  }
}

class Loop {
 public:
  Loop(const Denoiser& denoiser, const SolverTable& table, float* states, int64_t count, const int64_t* seeds,
       int threads)
      : denoiser_(denoiser),
        table_(table),
        states_(states),
        count_(count),
        seeds_(seeds),
        threads_(threads),
        not_finite_(size_t(table.rows)),
        room_{std::vector<float>(size_t(denoiser.room(table.rows, count))), room_[0]} {}

  // Evaluates the model and updates the state; returns the first row that isn't finite, or -1.
  int64_t step(int64_t k, Poll& poll) {
    const int64_t rows = table_.active[k], at = k * table_.rows;
    const float* x = state(k);
    const Denoiser::Outputs outputs =
        denoiser_.evaluate(k, rows, count_, x, table_.timesteps + at, room_[k % 2].data(), poll);
    const float* terms[SolverTable::kTerms] = {
        x, outputs.cond, outputs.uncond, state(k + kStates - 1), before_.cond, before_.uncond};
    const float* noise_scale = table_.noise_scale + at;
    const bool noisy = std::any_of(noise_scale, noise_scale + rows, [](float s) { return s != 0.0f; });
    std::fill(not_finite_.begin(), not_finite_.end(), 0);
    by_stretches(rows, count_, poll, [&](int64_t first, int64_t last) {
      LinearUpdateArgs args{};
      args.num_terms = SolverTable::kTerms;
      for (int j = 0; j < SolverTable::kTerms; ++j) {
        args.terms[j] = terms[j] ? terms[j] + first * count_ : nullptr;
        args.term_strides[j] = count_;
      }
      args.out = state(k + 1) + first * count_;
      args.out_stride = count_;
      args.coefficients = table_.coefficients + (at + first) * SolverTable::kTerms;
      if (noisy) {
        args.noise_scale = noise_scale + first;
        args.seeds = seeds_ + first;
        args.streams = table_.streams + at + first;
      }
      args.not_finite = not_finite_.data() + first;
      args.rows = last - first, args.count = count_, args.dtype = DType::kFloat32, args.threads = threads_;
      kernels().linear_update(args);
    });
    before_ = outputs;
    const auto bad = std::find(not_finite_.begin(), not_finite_.end(), 1);
    return bad == not_finite_.end() ? -1 : bad - not_finite_.begin();
  }

 private:
  float* state(int64_t k) { return states_ + k % kStates * table_.rows * count_; }

  const Denoiser& denoiser_;
  const SolverTable& table_;
  float* states_;
  int64_t count_;
  const int64_t* seeds_;
  int threads_;
  std::vector<uint8_t> not_finite_;
  std::vector<float> room_[2];
  Denoiser::Outputs before_{};
};

}  // namespace

LinearDenoiser::LinearDenoiser(std::vector<float> slope, std::vector<float> offset, int threads)
    : slope_(std::move(slope)), offset_(std::move(offset)), threads_(threads) {}

Denoiser::Outputs LinearDenoiser::evaluate(int64_t k, int64_t rows, int64_t count, const float* x,
                                           const float*, float* room, Poll& poll) const {
  const float slope = slope_.at(size_t(k)), offset = offset_.at(size_t(k));
  by_stretches(rows, count, poll, [&](int64_t first, int64_t last) {
    const float* in = x + first * count;
    float* out = room + first * count;
    parallel_for((last - first) * count, int64_t(1) << 16, threads_, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = slope * in[i] + offset;
    });
  });
  return {room, nullptr};
}

LoopResult denoise_loop(const Denoiser& denoiser, const SolverTable& table, float* states, int64_t count,
                        const int64_t* seeds, int threads, Watch& watch, Mailbox& mailbox) {
  Loop loop(denoiser, table, states, count, seeds, threads);
  Poll poll(watch);
  for (int64_t k = 0; k < table.evaluations; ++k) {
    if (mailbox.cancelled.load(std::memory_order_relaxed)) return {LoopResult::kCancelled, k, -1};
    const int64_t row = loop.step(k, poll);
    if (row >= 0) return {LoopResult::kNotFinite, k, row};
    mailbox.done.store(k + 1, std::memory_order_release);
    watch.after(k);
  }
  return {LoopResult::kDone, table.evaluations, -1};
}

}  // namespace aigc
