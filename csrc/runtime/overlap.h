// Whether an elementwise kernel may write a tensor while it reads another.
#pragma once

#include "cpu/args.h"

namespace aigc {

// True where every element of `out` has memory of its own.
bool distinct(const StridedView& out, const int64_t* shape, int rank);

// True where no element of `out` is one of `in`, or all are, each in its own place. Of views that interleave
// (channels of one buffer) true as long as their strides are alike; otherwise false when in doubt.
bool separate(const StridedView& out, const StridedView& in, const int64_t* shape, int rank);

}  // namespace aigc
