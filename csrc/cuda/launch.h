// Launchers of the CUDA kernels: the argument structs of csrc/cpu with device addresses.
#pragma once

#include "cpu/args.h"

namespace aigc {

// Queues the update on the stream. Returns null, or what CUDA says went wrong. `not_finite` and `threads`
// aren't used.
const char* linear_update_cuda(const LinearUpdateArgs& args, int device, void* stream);

}  // namespace aigc
