// What the normalisations share: results in another dtype, and types from their run-time names.
#pragma once

#include "cpu/pair.h"

namespace aigc::AIGC_ISA {

// A pair loaded from elements of type T, stored as elements of type O.
template <class T, class O>
AIGC_INLINE void store_result(O* p, Pair v, int n) {
  if constexpr (sizeof(T) == sizeof(O)) {
    store_pair(p, v, n);
  } else {
    uint16_t elements[kPair];
    store_in_order(n == kPair ? p : elements, v);
    if (n < kPair) std::memcpy(p, elements, size_t(n) * sizeof(uint16_t));
  }
}

// Calls f(x, out) with a value of either type.
template <class F>
AIGC_INLINE void with_dtypes(DType in, DType out, const F& f) {
  if (in == DType::kBFloat16) return f(uint16_t{}, uint16_t{});
  if (out == DType::kBFloat16) return f(float{}, uint16_t{});
  f(float{}, float{});
}

}  // namespace aigc::AIGC_ISA
