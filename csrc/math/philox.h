// Philox4x32-10 and Box-Muller: a number is a function of (seed, stream, element), the same bits everywhere.
//
// J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011. Only integer operations, +, -, * and
// the correctly rounded square root, in a fixed order. `L` says what a lane is: ScalarLanes here (a CUDA
// thread), VectorLanes in cpu/random.h (sixteen at once); both run this source.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/macros.h"

namespace aigc::AIGC_ISA {

struct ScalarLanes {
  using Counter = uint32_t;  // one 32-bit word of a counter
  using Word = uint32_t;
  using Int = int32_t;
  using Float = float;

  static AIGC_HD void wide_product(Counter a, uint32_t b, Counter& high, Counter& low) {
    const uint64_t product = uint64_t(a) * b;
    high = uint32_t(product >> 32);
    low = uint32_t(product);
  }
  static AIGC_HD Float to_float(Word w) { return float(w); }  // to nearest even
  static AIGC_HD Float to_float(Int i) { return float(i); }
  static AIGC_HD Word bits(Float f) {
    Word w;
    std::memcpy(&w, &f, sizeof w);
    return w;
  }
  static AIGC_HD Float from_bits(Word w) {
    Float f;
    std::memcpy(&f, &w, sizeof f);
    return f;
  }
  static AIGC_HD Float sqrt(Float f) { return sqrtf(f); }
  // a b + c for products that a float holds exactly: fused or not, the same bits.
  static AIGC_HD Float add_exact_product(Float a, float b, Float c) { return a * b + c; }
  static AIGC_HD Float choose(Word top_bit, Float if_set, Float if_not) {
    return top_bit >> 31 ? if_set : if_not;
  }
};

// Keys of the ten rounds: the seed's halves plus multiples of the Weyl increments. 32 bits in 64, so that
// vectors of 64-bit lanes take them straight from memory.
struct PhiloxKeys {
  static constexpr int kRounds = 10;
  uint64_t k0[kRounds], k1[kRounds];

  AIGC_HD explicit PhiloxKeys(uint64_t seed) {
    for (int i = 0; i < kRounds; ++i) {
      k0[i] = uint32_t(seed) + uint32_t(i) * 0x9E3779B9u;
      k1[i] = uint32_t(seed >> 32) + uint32_t(i) * 0xBB67AE85u;
    }
  }
};

// Counter words in, random words out.
template <class L>
AIGC_HD void philox(const PhiloxKeys& keys, typename L::Counter (&c)[4]) {
  for (int i = 0; i < PhiloxKeys::kRounds; ++i) {
    typename L::Counter high0, low0, high1, low1;
    L::wide_product(c[0], 0xD2511F53u, high0, low0);
    L::wide_product(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ keys.k0[i];
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ keys.k1[i];
    c[3] = low0;
  }
}

// sqrt(-2 ln u), u = (word + 1/2) / 2^32 in (0, 1]; ln by Cephes' logf polynomial about 1.
template <class L>
AIGC_HD typename L::Float normal_radius(typename L::Word word) {
  using Float = typename L::Float;
  const Float u = L::add_exact_product(L::to_float(word), 0x1p-32f, 0x1p-33f);
  // Exponent e and mantissa m in [sqrt(1/2), sqrt(2)), from the bits.
  const typename L::Word above = L::bits(u) - 0x3F3504F3u;
  const Float e = L::to_float(typename L::Int(above) >> 23);
  const Float f = L::from_bits((above & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
  const Float z = f * f;
  Float p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * z;
  p = p + e * -2.12194440e-4f;
  p = L::add_exact_product(z, -0.5f, p);
  const Float log = L::add_exact_product(e, 0.693359375f, f + p);  // nine bits times six
  return L::sqrt(log * -2.0f);
}

// Cosine and sine of 2 pi word / 2^32, by Cephes' polynomials on [-pi/4, pi/4) about the nearest quarter
// turn.
template <class L>
AIGC_HD void cos_sin(typename L::Word word, typename L::Float& cosine, typename L::Float& sine) {
  using Float = typename L::Float;
  using Word = typename L::Word;
  const Word turned = word + 0x20000000u;  // its two top bits count the quarters
  const Float x =
      L::to_float(typename L::Int(word - (turned & 0xC0000000u))) * 1.4629180792671596e-9f;  // 2 pi / 2^32
  const Float z = x * x;
  Float s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * x + x;
  Float c = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = L::add_exact_product(z, -0.5f, c * z * z) + 1.0f;
  const Word odd = turned << 1;
  cosine = L::from_bits(L::bits(L::choose(odd, s, c)) ^ ((turned + 0x40000000u) & 0x80000000u));
  sine = L::from_bits(L::bits(L::choose(odd, c, s)) ^ (turned & 0x80000000u));
}

// A uniform number in [0, 1) on a grid of 2^-24, where a float is exact.
template <class L>
AIGC_HD typename L::Float uniform(typename L::Word word) {
  return L::to_float(word >> 8) * 0x1p-24f;
}

// Two standard normals from two words.
template <class L>
AIGC_HD void box_muller(typename L::Word radius_word, typename L::Word angle_word, typename L::Float& first,
                        typename L::Float& second) {
  typename L::Float cosine, sine;
  cos_sin<L>(angle_word, cosine, sine);
  const typename L::Float r = normal_radius<L>(radius_word);
  first = r * cosine;
  second = r * sine;
}

}  // namespace aigc::AIGC_ISA
