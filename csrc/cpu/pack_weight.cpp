// Weights into panels: (columns, depth) becomes [panel of 16 columns][depth tile][P::kRight].
//
// Done once per weight. Sixteen lines of the left layout, one for each column, hold a tile's elements; the
// tile is their transpose in units of 4 bytes.
#include "cpu/pack_right.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

template <class T>
void pack_panel(const PackWeightArgs& a, int64_t panel, char* to) {
  const int64_t column = panel * kLanes;
  pack_columns(a.product, static_cast<const T*>(a.weight) + column * a.depth, a.depth,
               int(smaller(kLanes, a.columns - column)), a.depth, to);
}

}  // namespace

void pack_weight(const PackWeightArgs& a) {
  const int depth = right_depth(a.product);
  const int64_t bytes = blocks_of(a.depth, depth) * right_bytes(a.product);
  parallel_for(blocks_of(a.columns, kLanes), 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      char* to = static_cast<char*>(a.packed) + panel * bytes;
      if (a.dtype == DType::kInt8) pack_panel<int8_t>(a, panel, to);
      else a.dtype == DType::kFloat32 ? pack_panel<float>(a, panel, to) : pack_panel<uint16_t>(a, panel, to);
    }
  });
}

}  // namespace aigc::AIGC_ISA
