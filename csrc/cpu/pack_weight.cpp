// Weights into panels: (columns, depth) becomes [panel of 16 columns][depth tile][P::kRight].
//
// Done once per weight. Sixteen lines of the left layout, one for each column, hold a tile's elements; the
// tile is their transpose in units of 4 bytes.
#include "cpu/pack.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int kPairDepth = BFloat16Product::kDepth;

// What a column's line holds in a packed weight, whatever the level computes with.
template <class T>
AIGC_INLINE void column_line(Product product, const T* from, int n, uint16_t* high, uint16_t* low,
                             float* whole) {
  T elements[kPairDepth] = {};
  std::memcpy(elements, from, size_t(n) * sizeof(T));
  if (product == Product::kFloat32) {
    store(whole, load(elements));
    return;
  }
  for (int i = 0; i < kPairDepth; i += kLanes) {
    const Vec x = load(elements + i);
    if (product == Product::kSplit) {
      const Terms terms = split(x);
      store(high + i, terms.high), store(low + i, terms.low);
    } else {
      store(high + i, x);
    }
  }
}

// Columns' lines to a right tile: 4 bytes of each column side by side.
void transpose(const char* lines, char* tile) {
  for (int column = 0; column < kLanes; ++column)
    for (int k = 0; k < kTileRows; ++k)
      std::memcpy(tile + k * kTileLine + column * 4, lines + column * kTileLine + k * 4, 4);
}

template <class T>
void pack_panel(const PackWeightArgs& a, int64_t panel, char* to) {
  const int depth = a.product == Product::kFloat32 ? kLanes : kPairDepth;
  const T* weight = static_cast<const T*>(a.weight);
  alignas(64) char lines[2][kTileBytes];
  for (int64_t k = 0; k < a.depth; k += depth) {
    std::memset(lines, 0, sizeof lines);
    for (int column = 0; column < kLanes && panel * kLanes + column < a.columns; ++column) {
      char *high = lines[0] + column * kTileLine, *low = lines[1] + column * kTileLine;
      column_line(a.product, weight + (panel * kLanes + column) * a.depth + k,
                  int(smaller(depth, a.depth - k)), reinterpret_cast<uint16_t*>(high),
                  reinterpret_cast<uint16_t*>(low), reinterpret_cast<float*>(high));
    }
    transpose(lines[0], to);
    to += kTileBytes;
    if (a.product != Product::kSplit) continue;
    transpose(lines[1], to);
    to += kTileBytes;
  }
}

}  // namespace

void pack_weight(const PackWeightArgs& a) {
  const int depth = a.product == Product::kFloat32 ? kLanes : kPairDepth;
  const int64_t tiles = (a.depth + depth - 1) / depth;
  const int64_t bytes = tiles * kTileBytes * (a.product == Product::kSplit ? 2 : 1);
  parallel_for((a.columns + kLanes - 1) / kLanes, 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      char* to = static_cast<char*>(a.packed) + panel * bytes;
      a.dtype == DType::kFloat32 ? pack_panel<float>(a, panel, to) : pack_panel<uint16_t>(a, panel, to);
    }
  });
}

}  // namespace aigc::AIGC_ISA
