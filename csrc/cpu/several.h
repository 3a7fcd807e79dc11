// Several vectors as one, operation by operation: chains that don't depend on each other stand side by side,
// where a core finds them.
#pragma once

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

template <class V, int N>
struct Several {
  V v[N];

  Several() = default;

  // The same bits in another type.
  template <class U>
  AIGC_MEMBER explicit Several(const Several<U, N>& bits) {
    for (int i = 0; i < N; ++i) v[i] = V(bits.v[i]);
  }
};

#define AIGC_EACH(op)                                                              \
  template <class V, int N>                                                        \
  AIGC_INLINE Several<V, N> operator op(Several<V, N> a, const Several<V, N>& b) { \
    for (int i = 0; i < N; ++i) a.v[i] = a.v[i] op b.v[i];                         \
    return a;                                                                      \
  }                                                                                \
  template <class V, int N, class S>                                               \
  AIGC_INLINE Several<V, N> operator op(Several<V, N> a, S b) {                    \
    for (auto& v : a.v) v = v op b;                                                \
    return a;                                                                      \
  }
AIGC_EACH(+)
AIGC_EACH(-)
AIGC_EACH(*)
AIGC_EACH(&)
AIGC_EACH(^)
AIGC_EACH(<<)
AIGC_EACH(>>)
#undef AIGC_EACH

}  // namespace aigc::AIGC_ISA
