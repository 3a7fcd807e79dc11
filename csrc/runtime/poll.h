// How long-running native code lets the world around it look in.
#pragma once

#include <cstdint>

namespace aigc {

// What a run asks of the world around it. Either call may throw, which ends the run.
class Watch {
 public:
  virtual ~Watch() = default;
  virtual void interrupted() = 0;              // called some ten times a second
  virtual void after(int64_t evaluation) = 0;  // the update of `evaluation` is done
};

// Lets `Watch::interrupted` look, at most every 20 ms. Long-running code calls it at least every 20 ms.
class Poll {
 public:
  explicit Poll(Watch& watch);
  void operator()();

 private:
  Watch& watch_;
  int64_t next_;  // nanoseconds of the steady clock
};

// Nanoseconds of the steady clock.
int64_t steady_now();

}  // namespace aigc
