#include "runtime/poll.h"

#include <chrono>

namespace aigc {
namespace {

constexpr int64_t kPollInterval =
    20'000'000;  // ns: an interrupt may wait for two of them and stay well under 200 ms

}  // namespace

int64_t steady_now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Poll::Poll(Watch& watch) : watch_(watch), next_(steady_now() + kPollInterval) {}

void Poll::operator()() {
  if (steady_now() < next_) return;
  watch_.interrupted();
  next_ = steady_now() + kPollInterval;
}

}  // namespace aigc
