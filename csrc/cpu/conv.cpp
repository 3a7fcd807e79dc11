// Convolution as a product of gathered rows with a packed weight: implicit GEMM.
//
// 2 M K N operations over M output pixels, K = taps x channels, N output channels; floor: the same product's.
// Patches are gathered block by block straight into tiles, which costs a copy per tap; an image of whole
// lines of channels is packed once instead (padded.h), but where tiles would stand half empty on narrow ones.
// int8 patches are always gathered: each has a scale of its own, so a pixel's integers are others in every
// patch that it's in.
#include "cpu/padded_strips.h"
#include "cpu/padded_tiles.h"

namespace aigc::AIGC_ISA {
namespace {

template <class T>
const void* offset(const void* p, int64_t elements) {
  return p ? static_cast<const T*>(p) + elements : nullptr;
}

}  // namespace

void conv(const ConvArgs& a) {
  with_any_product(a.product, a.epilogue.dtype, [&](auto product, auto element) {
    using P = decltype(product);
    using T = decltype(element);
    const int64_t rows = a.batch * a.out_height * a.out_width, columns = a.epilogue.columns / a.groups;
    const char* weight = static_cast<const char*>(a.weight);
    for (int64_t group = 0; group < a.groups; ++group) {
      const PatchSource<P, T> source(a, group);
      EpilogueArgs e = a.epilogue;
      const int64_t first = group * columns;
      e.columns = columns;
      e.bias = offset<T>(e.bias, first), e.sample_bias = offset<T>(e.sample_bias, first);
      e.residual = offset<T>(e.residual, first), e.out = static_cast<T*>(e.out) + first;
      const int64_t panels = panels_of(e), tiles = (source.depth + P::kDepth - 1) / P::kDepth;
      if (P::kScaled) e.scales += group * panels * kLanes, e.column_sums += group * panels * kLanes;
      const auto multiply = [&] {
        if constexpr (!P::kScaled) {
          using Padded = std::conditional_t<P::kTiles, PaddedTiles<P, T>, PaddedStrips<P, T>>;
          if (Padded::serves(source, panels)) return Padded(source, weight, panels, e).run();
        }
        gemm<P, T>(source, weight, rows, panels, e, a.threads);
      };
      multiply();
      weight += panels * tiles * P::kRight;
    }
  });
}

}  // namespace aigc::AIGC_ISA
