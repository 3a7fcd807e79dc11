#include "runtime/recording.h"

namespace aigc {

Recording*& Recording::current() {
  static thread_local Recording* recording = nullptr;
  return recording;
}

void Recording::run(Poll& poll) const {
  for (const Call& call : calls_) {
    call();
    poll();
  }
}

std::vector<int64_t> Recording::run_timed(Poll& poll) const {
  std::vector<int64_t> times;
  times.reserve(calls_.size());
  for (const Call& call : calls_) {
    const int64_t before = steady_now();
    call();
    times.push_back(steady_now() - before);
    poll();
  }
  return times;
}

}  // namespace aigc
