// Mean and variance from sums about a shift.
//
// A block's shift k is the mean of its first m elements, so that its sums of (x - k) and (x - k)^2 in float32
// lose nothing to a large mean: q = M2 + n (mean - k)^2 <= M2 (1 + n / m), because those m elements alone put
// m (mean - k)^2 into M2. With m >= n / 32 that is at most 33 roundings' worth, for any data. Blocks have a
// fixed size and meet in double, in a fixed order.
#pragma once

#include "cpu/pair.h"

namespace aigc::AIGC_ISA {

constexpr int64_t kRunBlock = 8192;  // elements: 64 additions a lane and accumulator

// Sums of n values about `shift`.
struct BlockSums {
  float shift, sum, square;
};

class Moments {
 public:
  AIGC_MEMBER void add(double n, BlockSums block) {
    if (count_ == 0.0) shift_ = block.shift;
    const double step = double(block.shift) - shift_;
    sum_ += n * step + block.sum;
    square_ += block.square + step * (2.0 * block.sum + n * step);
    count_ += n;
  }

  AIGC_MEMBER double mean() const { return shift_ + sum_ / count_; }

  AIGC_MEMBER double variance() const {
    const double centred = square_ - sum_ * sum_ / count_;
    return centred < 0.0 ? 0.0 : centred / count_;  // NaN stays
  }

 private:
  double count_ = 0.0, shift_ = 0.0, sum_ = 0.0, square_ = 0.0;
};

// What a normalisation does to its elements: (x - centre) * scale - low * scale. The mean stays exact in two
// floats.
struct Centre {
  float high;
  double low;
  double scale;

  AIGC_MEMBER Centre(const Moments& moments, float eps)
      : high(float(moments.mean())),
        low(moments.mean() - double(high)),
        scale(1.0 / __builtin_sqrt(moments.variance() + double(eps))) {}
};

AIGC_INLINE void accumulate(Pair x, float shift, Vec* sums, Vec* squares) {
  const Vec a = x.a - shift, b = x.b - shift;
  sums[0] = sums[0] + a, sums[1] = sums[1] + b;
  squares[0] = vfma(a, a, squares[0]), squares[1] = vfma(b, b, squares[1]);
}

// Sums over n <= kRunBlock contiguous elements.
template <class T>
inline BlockSums run_sums(const T* x, int64_t n) {
  const float first = to_float(x[0]);
  int64_t pilot = n / 16 / kPair * kPair;
  if (pilot == 0) pilot = n < kPair ? n : kPair;
  int64_t i = 0;
  Vec offset = splat(0.0f);
  for (; i + kPair <= pilot; i += kPair) {
    const Pair v = load_pair(x + i);
    offset = offset + ((v.a - first) + (v.b - first));
  }
  float rest = 0.0f;
  for (; i < pilot; ++i) rest += to_float(x[i]) - first;
  const float shift = first + (sum(offset) + rest) / float(pilot);

  Vec sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  Vec squares[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (i = 0; i + 2 * kPair <= n; i += 2 * kPair) {
    accumulate(load_pair(x + i), shift, sums, squares);
    accumulate(load_pair(x + i + kPair), shift, sums + 2, squares + 2);
  }
  if (i + kPair <= n) accumulate(load_pair(x + i), shift, sums, squares), i += kPair;
  float tail = 0.0f, tail_square = 0.0f;
  for (; i < n; ++i) {
    const float d = to_float(x[i]) - shift;
    tail += d, tail_square += d * d;
  }
  return {shift, sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + tail,
          sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + tail_square};
}

}  // namespace aigc::AIGC_ISA
