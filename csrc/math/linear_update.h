// One element of a solver step: sum_j c_j x_j, left to right from zero, every product and every sum rounded.
//
// Noise is one more term. `Float` is a float (a CUDA thread) or sixteen lanes (the CPU loop); both run this
// source, compiled without contraction, and so give the same bits.
#pragma once

#include "math/macros.h"

namespace aigc::AIGC_ISA {

template <int J, class Float, class Term>
AIGC_HD Float linear_update_element(const float* coefficients, const Term& term) {
  Float sum{};
  for (int j = 0; j < J; ++j) sum = sum + term(j) * coefficients[j];
  return sum;
}

}  // namespace aigc::AIGC_ISA
