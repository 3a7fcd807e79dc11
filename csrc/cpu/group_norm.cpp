// out = (x - mean) / sqrt(variance + eps) * weight + bias over groups of channels, and silu of it when asked
// for.
//
// Two passes over x: sums, then the result. SD's 2 x 320 x 64 x 64 in float32 is 10.5 MB, which the second
// pass finds in L3 (a core of Zen 4 reads 84 GB/s from there): 10.5 MB read twice, 10.5 MB written; a copy of
// x moves 21 MB of these, in 0.13 ms. Arithmetic, in vector operations per 16 elements: 3 for the sums, 2 to
// normalise, 12 for silu in float32 and 10 in bfloat16, which also unpacks (1 + 1) and packs (1.3 with
// AVX512_BF16, 6 without). Zen 4 does 1.5 such operations a cycle, so that 2.6 million elements of bfloat16
// take two cores at 3.7 GHz 0.27 ms, the floor; the division, of 6 cycles, hides behind the rest.
#include "cpu/group_norm.h"

#include "cpu/moments.h"
#include "cpu/norm.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

// t = n + f, n an integer and f in [-1/2, 1/2], for 2^t = 2^n 2^f; infinite from 128 on. Below 2^-124
// `scaled` gives zero on some levels and up to that on others: 1 + 2^t has the same bits.
class BinaryExponent {
 public:
#if defined(__AVX512F__)
  AIGC_MEMBER explicit BinaryExponent(Vec t) : fraction_(t), whole_(t) {
    fraction_.part[0] = _mm512_reduce_ps(t.part[0], _MM_FROUND_TO_NEAREST_INT);  // 0 where t is infinite
    whole_ = t - fraction_;
  }
  // p 2^n for p of a magnitude in [1, 4).
  AIGC_MEMBER Vec scaled(Vec p) const {
    p.part[0] = _mm512_scalef_ps(p.part[0], whole_.part[0]);
    return p;
  }
#else
  AIGC_MEMBER explicit BinaryExponent(Vec t) {
    const Vec bounded = vmin(splat(128.0f), vmax(splat(-124.0f), t));
    whole_ = bounded + 12582912.0f;  // 1.5 * 2^23 rounds to n, which stands in the low bits
    fraction_ = bounded - (whole_ - 12582912.0f);
  }
  // In two steps, since 2^128 overflows where p 2^126 doesn't.
  AIGC_MEMBER Vec scaled(Vec p) const { return Vec(UVec(p) + ((UVec(whole_) << 23) + 0xff000000u)) * 4.0f; }
#endif
  AIGC_MEMBER Vec fraction() const { return fraction_; }

 private:
  Vec fraction_, whole_;
};

// silu(v) = v / (1 + e^-v), given t = -v log2(e): t / (K + K 2^t), K = -log2(e); rounding t stands in for
// rounding v. K 2^f on [-1/2, 1/2] is a minimax polynomial with K multiplied in: relative error 7.5e-8 (0.6
// ULP) at degree 5, 7.5e-5 at degree 3, a twenty-fifth of bfloat16's half ULP.
template <class O>
AIGC_INLINE Vec silu_log2(Vec t) {
  const BinaryExponent exponent(t);
  const Vec f = exponent.fraction();
  Vec p;
  if constexpr (sizeof(O) == 4) {
    p = splat(-1.9153900557e-3f);
    p = vfma(p, f, -1.39588554962e-2f);
    p = vfma(p, f, -8.00798651217e-2f);
    p = vfma(p, f, -3.46565929974e-1f);
    p = vfma(p, f, -9.99999691992e-1f);
    p = vfma(p, f, -1.44269514426f);
  } else {
    p = splat(-7.95958933975e-2f);
    p = vfma(p, f, -3.50013862897e-1f);
    p = vfma(p, f, -1.00016418576f);
    p = vfma(p, f, -1.44259127293f);
  }
  return t / (exponent.scaled(p) - kLog2E);
}

template <class O, bool Silu>
AIGC_INLINE Vec finish(Vec x, Vec centre, Vec scale, Vec shift) {
  const Vec v = vfma(x - centre, scale, shift);
  return Silu ? silu_log2<O>(v) : v;
}

// Channels-last. The result of P pixels, which share the loads of their parameters (3, width).
template <bool Silu, int P, class T, class O>
AIGC_INLINE void finish_pixels_of(const T* x, O* out, const float* at, int64_t width, int64_t channels) {
  for_pairs(channels, [=](int64_t c, int n) __attribute__((always_inline)) {
    const Pair centre = load_pair(at + c), scale = load_pair(at + width + c);
    const Pair shift = load_pair(at + 2 * width + c);
    for (int p = 0; p < P; ++p) {
      const Pair v = load_pair(x + p * channels + c, n);
      store_result<T>(out + p * channels + c,
                      {finish<O, Silu>(v.a, centre.a, scale.a, shift.a),
                       finish<O, Silu>(v.b, centre.b, scale.b, shift.b)},
                      n);
    }
  });
}

// Channels-last. Sums of `pixels` pixels, for V * 32 channels (n < 32 of them when V = 1): accumulators in
// registers.
template <int V, class T>
AIGC_INLINE void pixel_sums(const T* x, int64_t pixels, int64_t stride, int n, float* shift, float* sum,
                            float* square) {
  constexpr int64_t kPilot = 16;  // see moments.h: at most 1 + 256 / 16 roundings' worth
  const int64_t pilot = pixels < kPilot ? pixels : kPilot;
  Pair k[V], s[V], q[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Pair first = load_pair(x + v * kPair, n);
    k[v] = {splat(0.0f), splat(0.0f)};
    for (int64_t p = 0; p < pilot; ++p) {
      const Pair value = load_pair(x + p * stride + v * kPair, n);
      k[v].a = k[v].a + (value.a - first.a), k[v].b = k[v].b + (value.b - first.b);
    }
    k[v].a = first.a + k[v].a / float(pilot), k[v].b = first.b + k[v].b / float(pilot);
    s[v] = q[v] = {splat(0.0f), splat(0.0f)};
  }
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Pair value = load_pair(x + p * stride + v * kPair, n);
      const Vec a = value.a - k[v].a, b = value.b - k[v].b;
      s[v].a = s[v].a + a, s[v].b = s[v].b + b;
      q[v].a = vfma(a, a, q[v].a), q[v].b = vfma(b, b, q[v].b);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    store_pair(shift + v * kPair, k[v]);
    store_pair(sum + v * kPair, s[v]);
    store_pair(square + v * kPair, q[v]);
  }
}

static_assert(kContiguousBlock <= kRunBlock);

// Pixels that share the loads of their parameters. In float32 the loads wait for memory, and one stream is
// faster.
template <class T>
constexpr int kTogether = sizeof(T) == 2 ? 4 : 1;

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

AIGC_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T, class O>
struct GroupNorm {
  const GroupNormArgs& a;
  const T* x = static_cast<const T*>(a.x);
  O* out = static_cast<O*>(a.out);
  const int64_t width = group_norm_channels(a);  // channels in whole pairs
  const int64_t blocks = group_norm_blocks(a);
  const int64_t per_group = a.channels / a.groups;

  // (3, width) of an image: centre, scale, shift, in pair order where the layout is channels-last.
  float* parameters(int64_t b) const {
    return a.workspace + a.batch * blocks * 3 * (a.channels_last ? width : a.groups) + b * 3 * width;
  }

  // (3, width) of a block of pixels: shift, sum, square, in pair order.
  float* pixel_block(int64_t b, int64_t block) const {
    return a.workspace + (b * blocks + block) * 3 * width;
  }

  // (3) of a block of a group's elements.
  float* run_block(int64_t b, int64_t g, int64_t block) const {
    return a.workspace + ((b * a.groups + g) * blocks + block) * 3;
  }

  int64_t pixels(int64_t block) const { return least(kPixelBlock, a.inner - block * kPixelBlock); }

  int64_t run_length(int64_t block) const {
    return least(kContiguousBlock, per_group * a.inner - block * kContiguousBlock);
  }

  template <int V>
  void sum_pixels() const {
    const int64_t chunks = (width / kPair + V - 1) / V;
    const int64_t grain = kGrain / (least(kPixelBlock, a.inner) * V * kPair) + 1;
    parallel_for(a.batch * blocks * chunks, grain, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / chunks % blocks, b = item / chunks / blocks;
        const int64_t first = item % chunks * V * kPair, last = least(first + V * kPair, a.channels);
        const T* from = x + (b * a.inner + block * kPixelBlock) * a.channels;
        float* to = pixel_block(b, block);
        int64_t c = first;
        if (last - first == V * kPair) {
          pixel_sums<V>(from + c, pixels(block), a.channels, kPair, to + c, to + width + c,
                        to + 2 * width + c);
          continue;
        }
        for (; c + kPair <= last; c += kPair)
          pixel_sums<1>(from + c, pixels(block), a.channels, kPair, to + c, to + width + c,
                        to + 2 * width + c);
        if (c < last)
          pixel_sums<1>(from + c, pixels(block), a.channels, int(last - c), to + c, to + width + c,
                        to + 2 * width + c);
      }
    });
  }

  void sum_runs() const {
    const int64_t grain = kGrain / least(kContiguousBlock, per_group * a.inner) + 1;
    parallel_for(a.batch * a.groups * blocks, grain, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % blocks, group = item / blocks;
        const BlockSums sums =
            run_sums(x + group * per_group * a.inner + block * kContiguousBlock, run_length(block));
        std::memcpy(run_block(0, group, block), &sums, sizeof sums);
      }
    });
  }

  Moments moments(int64_t b, int64_t g) const {
    Moments moments;
    for (int64_t block = 0; block < blocks; ++block) {
      if (!a.channels_last) {
        const float* sums = run_block(b, g, block);
        moments.add(double(run_length(block)), {sums[0], sums[1], sums[2]});
        continue;
      }
      const float* sums = pixel_block(b, block);
      for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
        const float* at = sums + slot(c);
        moments.add(double(pixels(block)), {at[0], at[width], at[2 * width]});
      }
    }
    return moments;
  }

  int64_t slot(int64_t c) const {
    return a.channels_last ? c / kPair * kPair + pair_slot<T>(int(c % kPair)) : c;
  }

  // With silu, the affine map ends in silu_log2's variable.
  void parameterise() const {
    const int64_t grain = kGrain / (blocks * (a.channels_last ? per_group : 1) * 8) + 1;
    parallel_for(a.batch * a.groups, grain, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / a.groups, g = item % a.groups;
        const Centre centre(moments(b, g), a.eps);
        const double gain = a.silu ? -double(kLog2E) : 1.0;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
          const double weight = a.weight ? to_float(static_cast<const T*>(a.weight)[c]) : 1.0f;
          const double bias = a.bias ? to_float(static_cast<const T*>(a.bias)[c]) : 0.0f;
          const double scale = centre.scale * weight;
          float* at = parameters(b) + slot(c);
          at[0] = centre.high;
          at[width] = float(scale * gain);
          at[2 * width] = float((bias - centre.low * scale) * gain);
        }
      }
    });
  }

  template <bool Silu>
  void finish_pixels() const {
    constexpr int P = kTogether<T>;
    const int64_t groups = (a.inner + P - 1) / P, channels = a.channels;
    parallel_for(a.batch * groups, kGrain / (P * channels) + 1, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / groups, first = item % groups * P;
        const int64_t offset = (b * a.inner + first) * channels;
        const float* at = parameters(b);
        if (first + P <= a.inner) {
          finish_pixels_of<Silu, P>(x + offset, out + offset, at, width, channels);
          continue;
        }
        for (int64_t p = offset; p < (b + 1) * a.inner * channels; p += channels)
          finish_pixels_of<Silu, 1>(x + p, out + p, at, width, channels);
      }
    });
  }

  template <bool Silu>
  void finish_runs() const {
    const int64_t pieces = (a.inner + kGrain - 1) / kGrain, grain = kGrain / a.inner + 1;
    parallel_for(a.batch * a.channels * pieces, grain, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / pieces, first = item % pieces * kGrain;
        const float* at = parameters(row / a.channels) + row % a.channels;
        const Vec centre = splat(at[0]), scale = splat(at[width]), shift = splat(at[2 * width]);
        const int64_t offset = row * a.inner + first;
        for_pairs(least(kGrain, a.inner - first), [&](int64_t i, int n) __attribute__((always_inline)) {
          const Pair v = load_pair(x + offset + i, n);
          store_result<T>(
              out + offset + i,
              {finish<O, Silu>(v.a, centre, scale, shift), finish<O, Silu>(v.b, centre, scale, shift)}, n);
        });
      }
    });
  }

  template <bool Silu>
  void run() const {
    if (a.channels_last) {
      sum_pixels<4>();
      parameterise();
      finish_pixels<Silu>();
    } else {
      sum_runs();
      parameterise();
      finish_runs<Silu>();
    }
  }
};

}  // namespace

void group_norm(const GroupNormArgs& a) {
  with_dtypes(a.dtype, a.out_dtype, [&](auto from, auto to) {
    const GroupNorm<decltype(from), decltype(to)> norm{a};
    a.silu ? norm.template run<true>() : norm.template run<false>();
  });
}

}  // namespace aigc::AIGC_ISA
