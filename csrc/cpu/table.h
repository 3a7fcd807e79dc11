// The list of native CPU kernels. A new kernel is a struct in args.h, a source in csrc/cpu and a line here
// (a tiled one also a name in CMakeLists.txt).
#pragma once

#include "cpu/args.h"

// Made of matrix products, or of so little else that rounding to bfloat16 is a third (one instruction where
// there is AVX512_BF16): compiled for every ISA level.
#define AIGC_TILED_KERNELS(X)    \
  X(attention, AttentionArgs)    \
  X(ceiling, CeilingArgs)        \
  X(conv, ConvArgs)              \
  X(group_norm, GroupNormArgs)   \
  X(layer_norm, LayerNormArgs)   \
  X(linear, LinearArgs)          \
  X(pack_weight, PackWeightArgs) \
  X(rms_norm, LayerNormArgs)     \
  X(winograd, ConvArgs)

// All others: compiled for portable, avx2 and avx512, whose functions the levels above share.
#define AIGC_PLAIN_KERNELS(X)          \
  X(bias_act, BiasActArgs)             \
  X(decoder_step, DecoderStepArgs)     \
  X(depthwise, ConvArgs)               \
  X(embedding, EmbeddingArgs)          \
  X(glu, GluArgs)                      \
  X(linear_update, LinearUpdateArgs)   \
  X(philox_normal, PhiloxNormalArgs)   \
  X(philox_uniform, PhiloxUniformArgs) \
  X(pointwise, PointwiseArgs)          \
  X(resize, ResizeArgs)                \
  X(sample_token, SampleTokenArgs)

namespace aigc {

struct KernelTable {
  const char* isa;
#define AIGC_FIELD(name, Args) void (*name)(const Args&);
  AIGC_TILED_KERNELS(AIGC_FIELD)
  AIGC_PLAIN_KERNELS(AIGC_FIELD)
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
