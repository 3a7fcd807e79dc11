// Kernel calls kept to be run later, as often as wanted: what a plan consists of.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/poll.h"

namespace aigc {

class Recording {
 public:
  using Call = std::function<void()>;

  void add(Call call) { calls_.push_back(std::move(call)); }
  int64_t size() const { return int64_t(calls_.size()); }

  // Runs the calls in order, polling between them. Several threads may run one recording at a time only if
  // its calls write to different memory, which those of a plan don't.
  void run(Poll& poll) const;

  // The same, and how long each call took, in nanoseconds.
  std::vector<int64_t> run_timed(Poll& poll) const;

  // What this thread records into, or null where calls run at once.
  static Recording*& current();

 private:
  std::vector<Call> calls_;
};

}  // namespace aigc
