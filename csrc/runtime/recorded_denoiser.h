// A model that is a recording: its network runs without Python for as many evaluations as a loop has.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "runtime/denoise_loop.h"
#include "runtime/recording.h"

namespace aigc {

class RecordedDenoiser : public Denoiser {
 public:
  // What the network reads that is known beforehand, such as what follows from the time: entry k - first of
  // `source`, (rows, bytes), goes to `target` at evaluation k.
  struct Schedule {
    char* target;
    int64_t pitch;  // bytes from row to row of the target
    const char* source;
    int64_t rows, bytes;
  };
  // The network for one number of rows. The recordings are the caller's and outlive this.
  struct Program {
    int64_t first;  // evaluation with this number of rows
    std::vector<Schedule> schedules;
    std::vector<const Recording*> enter;    // kStates: from state k % 3 to the network's input
    std::vector<const Recording*> network;  // in order
    std::vector<const Recording*> leave;    // 2: from the network's result to outputs[k % 2]
    std::vector<const float*> outputs;      // 2 of (rows, count), or (2, rows, count) if guided
  };

  explicit RecordedDenoiser(bool guided) : guided_(guided) {}

  void add(int64_t rows, Program program) { programs_[rows] = std::move(program); }
  bool guided() const override { return guided_; }
  int64_t room(int64_t, int64_t) const override { return 0; }
  Outputs evaluate(int64_t k, int64_t rows, int64_t count, const float* x, const float* t, float* room,
                   Poll& poll) const override;

 private:
  bool guided_;
  std::map<int64_t, Program> programs_;
};

}  // namespace aigc
