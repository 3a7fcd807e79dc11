// The sizes of group_norm's workspace, shared by the kernel and whoever allocates it.
#pragma once

#include "cpu/args.h"

namespace aigc {

// Partial sums are taken over blocks whose size depends on nothing but the layout, so that neither the batch
// nor the threads can change a bit.
constexpr int64_t kPixelBlock = 256;        // channels-last: pixels
constexpr int64_t kContiguousBlock = 8192;  // channels first: elements of a group

static inline int64_t group_norm_channels(const GroupNormArgs& a) { return (a.channels + 31) / 32 * 32; }

static inline int64_t group_norm_blocks(const GroupNormArgs& a) {
  if (a.channels_last) return (a.inner + kPixelBlock - 1) / kPixelBlock;
  return (a.channels / a.groups * a.inner + kContiguousBlock - 1) / kContiguousBlock;
}

// Floats: (batch, blocks, 3, channels or groups) sums, then (batch, 3, channels) parameters of the second
// pass.
static inline int64_t group_norm_workspace(const GroupNormArgs& a) {
  const int64_t channels = group_norm_channels(a);
  return a.batch * 3 * (group_norm_blocks(a) * (a.channels_last ? channels : a.groups) + channels);
}

}  // namespace aigc
