// Memory that a kernel needs for the length of a call: kept by each thread between calls, up to a bound.
#pragma once

#include <cstddef>

namespace aigc {

// At least `bytes`, aligned to a cache line, valid until the thread's next call or its end. Larger than
// kScratchKept is given back by release_scratch().
void* scratch(size_t bytes);
void release_scratch();

constexpr size_t kScratchKept = size_t(16) << 20;

// For tests: fills every block that scratch() hands out with NaN first.
void poison_scratch(bool on);

// Cache sizes of the first CPU in bytes, read once; assumed where the system doesn't say.
struct Caches {
  size_t l1, l2;
};
const Caches& caches();

}  // namespace aigc
