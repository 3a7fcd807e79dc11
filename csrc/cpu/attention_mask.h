// Masks of attention, applied to the scores of one row and some keys.
//
// Scores are turned into weights by 2^(slope (score - highest)). Without a mask that is added, slope holds
// the scale too, and scores stay as the product made them; a forbidden key's is -infinity.
#pragma once

#include "cpu/softmax.h"

namespace aigc::AIGC_ISA {

// Panel p of a row's scores is at p * kTileFloats. Forbids columns [first, 16 * panels).
AIGC_INLINE void clear_scores(float* scores, int first, int panels) {
  static constexpr int32_t kLane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const IVec lane = load_bits<IVec>(kLane);
  for (int p = first / kLanes; p < panels; ++p) {
    float* at = scores + p * kTileFloats;
    store(at, select(lane < fill(first - p * kLanes), load(at), splat(kNoScore)));
  }
}

template <class T>
struct Mask {
  const AttentionArgs& a;
  const bool scaled;  // scores are multiplied here
  const float slope;

  explicit Mask(const AttentionArgs& args)
      : a(args),
        scaled(args.mask_kind == MaskKind::kAdded || !(args.scale > 0.0)),
        slope(scaled ? kLog2E : float(args.scale * 1.4426950408889634)) {}

  AIGC_MEMBER void apply(int64_t batch, int64_t head, int64_t query, int64_t key, int keys,
                         float* scores) const {
    if (!scaled && a.mask_kind == MaskKind::kNone) return;
    const int64_t* strides = a.mask_strides;
    const int64_t at = batch * strides[0] + head * strides[1] + query * strides[2] + key * strides[3];
    if (scaled)
      for (int k = 0; k < keys; k += kLanes) {
        float* panel = scores + k / kLanes * kTileFloats;
        const Vec score = load(panel) * float(a.scale);
        store(panel, a.mask_kind == MaskKind::kAdded ? score + added(at, k, keys) : score);
      }
    if (a.mask_kind == MaskKind::kBool) forbid(static_cast<const uint8_t*>(a.mask) + at, keys, scores);
  }

 private:
  AIGC_MEMBER Vec added(int64_t at, int k, int keys) const {
    const T* from = static_cast<const T*>(a.mask) + at;
    if (a.mask_strides[3] == 0) return splat(to_float(*from));
    return keys - k < kLanes ? load_n(from + k, keys - k) : load(from + k);
  }

  AIGC_MEMBER void forbid(const uint8_t* allowed, int keys, float* scores) const {
    if (a.mask_strides[3] == 0) {
      if (!*allowed) clear_scores(scores, 0, (keys + kLanes - 1) / kLanes);
      return;
    }
    for (int k = 0; k < keys; k += kLanes) {
      float* panel = scores + k / kLanes * kTileFloats;
      int32_t lanes[kLanes] = {};
      for (int i = 0; i < kLanes && k + i < keys; ++i) lanes[i] = allowed[k + i];
      store(panel, select(load_bits<IVec>(lanes) > fill(0), load(panel), splat(kNoScore)));
    }
  }
};

}  // namespace aigc::AIGC_ISA
