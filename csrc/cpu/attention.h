// The sizes of attention's packed keys and values, shared by the kernel and whoever allocates them.
#pragma once

#include "cpu/args.h"

namespace aigc {

// A head's keys stand in panels of 16 keys over the head's depth, its values in panels of 16 columns over the
// depth of all keys; see csrc/cpu/product.h for the tiles.
struct PackedHead {
  int64_t key_tiles, key_panels;      // of depth and panels, in front of the scores
  int64_t value_tiles, value_panels;  // in front of the result
  int64_t tile_bytes;

  // Forced inline: a weak copy compiled for one ISA level would be linked into the others.
  __attribute__((always_inline)) PackedHead(Product product, int64_t keys, int64_t head_dim) {
    const int64_t depth = product == Product::kFloat32 ? 16 : 32;
    key_tiles = (head_dim + depth - 1) / depth, key_panels = (keys + 15) / 16;
    value_tiles = (keys + depth - 1) / depth, value_panels = (head_dim + 15) / 16;
    tile_bytes = product == Product::kSplit ? 2048 : 1024;
  }

  __attribute__((always_inline)) int64_t key_bytes() const { return key_tiles * key_panels * tile_bytes; }
  __attribute__((always_inline)) int64_t bytes() const {
    return key_bytes() + value_tiles * value_panels * tile_bytes;
  }
};

constexpr int64_t kPackedHeadsKept = int64_t(16) << 20;

// Bytes for all heads if they fit in kPackedHeadsKept, else for as many as do, at least one.
static inline int64_t attention_workspace(const AttentionArgs& a) {
  const int64_t head = PackedHead(a.product, a.keys, a.head_dim).bytes();
  const int64_t kept = head > kPackedHeadsKept ? 1 : kPackedHeadsKept / head;
  const int64_t heads = a.batch * a.kv_heads;
  return head * (heads < kept ? heads : kept);
}

}  // namespace aigc
