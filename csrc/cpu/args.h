// Arguments of every native CPU kernel: plain structs of pointers, sizes and strides (in elements).
#pragma once

#include <cstdint>

namespace aigc {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

enum class Activation : int32_t { kNone, kRelu, kLeakyRelu, kSilu, kGelu, kGeluTanh, kTanh, kSigmoid };

// out = clamp(act(x + bias[channel]) * gain); x viewed as (outer, channels, inner).
struct BiasActArgs {
  const void* x;
  const void* bias;  // may be null
  void* out;
  int64_t outer, channels, inner;
  DType dtype;
  Activation act;
  float slope, gain, clamp;  // clamp < 0: none
  int threads;
};

}  // namespace aigc
