// The list of native CPU kernels. A new kernel is a struct in args.h, a source in csrc/cpu and a line here.
#pragma once

#include "cpu/args.h"

#define AIGC_CPU_KERNELS(X)            \
  X(bias_act, BiasActArgs)             \
  X(decoder_step, DecoderStepArgs)     \
  X(glu, GluArgs)                      \
  X(group_norm, GroupNormArgs)         \
  X(layer_norm, LayerNormArgs)         \
  X(linear, LinearArgs)                \
  X(linear_update, LinearUpdateArgs)   \
  X(pack_weight, PackWeightArgs)       \
  X(philox_normal, PhiloxNormalArgs)   \
  X(philox_uniform, PhiloxUniformArgs) \
  X(rms_norm, LayerNormArgs)           \
  X(sample_token, SampleTokenArgs)

namespace aigc {

struct KernelTable {
  const char* isa;
#define AIGC_FIELD(name, Args) void (*name)(const Args&);
  AIGC_CPU_KERNELS(AIGC_FIELD)
#undef AIGC_FIELD
};

// The best level this machine runs, or the one set by `force_isa`.
const KernelTable& kernels();
const struct IsaLevel& isa_level();

// Level names, worst first; `supported` says whether this machine runs it, `built` whether this build has it.
struct IsaLevel {
  const char* name;
  bool built, supported;
  bool automatic;  // chosen unasked where supported
  bool tiles;      // bfloat16 products on tiles: float32 in two terms is faster than FMA
  bool dots;       // bfloat16 products faster than float32
  const KernelTable* table;
};
const IsaLevel* isa_levels(int* count);

// Returns false and changes nothing when the level is unknown, not built or not runnable here.
bool force_isa(const char* name);

}  // namespace aigc
