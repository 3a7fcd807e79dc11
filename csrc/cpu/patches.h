// Patches of an image as rows of a product: a row is an output pixel, its depth (tap, channel). Padding,
// stride, dilation, the seam of two inputs and repeated pixels are all in where an element is read.
#pragma once

#include "cpu/gemm.h"

namespace aigc::AIGC_ISA {

template <class P, class T>
struct PatchSource {
  using Element = T;
  static constexpr bool kRows = false;
  const ConvArgs& a;
  int64_t group;
  int64_t first_channels, channels;  // of the group: in the first input, in both
  int64_t depth;
  bool side_by_side;  // neighbouring taps are neighbours in memory

  PatchSource(const ConvArgs& args, int64_t g)
      : a(args),
        group(g),
        first_channels(args.channels[0] / args.groups),
        channels((args.channels[0] + args.channels[1]) / args.groups),
        depth(args.taps[0] * args.taps[1] * channels),
        side_by_side(!args.inputs[1] && args.groups == 1 && args.dilation[1] == 1 && args.upsample == 1 &&
                     args.strides[0][2] == channels) {}

  struct Pixel {
    int64_t b, y, x;  // of the enlarged input, for tap (0, 0)
  };

  AIGC_MEMBER Pixel pixel(int64_t row) const {
    const int64_t x = row % a.out_width, by = row / a.out_width, y = by % a.out_height;
    return {by / a.out_height, y * a.stride[0] - a.padding[0], x * a.stride[1] - a.padding[1]};
  }

  // Channel c of a tap, or null where it lies outside.
  AIGC_MEMBER const T* at(const Pixel& p, int64_t tap_y, int64_t tap_x, int64_t c) const {
    int64_t y = p.y + tap_y * a.dilation[0], x = p.x + tap_x * a.dilation[1];
    if (uint64_t(y) >= uint64_t(a.height) || uint64_t(x) >= uint64_t(a.width)) return nullptr;
    if (a.upsample == 2) {  // a division costs as much as the copy
      y >>= 1, x >>= 1;
    } else if (a.upsample > 2) {
      y /= a.upsample, x /= a.upsample;
    }
    const int i = c >= first_channels;
    const int64_t* s = a.strides[i];
    const int64_t channel = i ? c - first_channels : group * first_channels + c;
    return static_cast<const T*>(a.inputs[i]) + p.b * s[0] + y * s[1] + x * s[2] + channel;
  }

  template <class F>
  AIGC_MEMBER void runs(int64_t row, int64_t begin, int64_t end, const F& f) const {
    constexpr int64_t kGathered = 1024;
    if (channels >= P::kDepth || end - begin > kGathered) {
      stretches(row, begin, end, f);
      return;
    }
    // Few channels: a line spans many taps, so the row is put together first.
    T gathered[kGathered];
    stretches(row, begin, end, [&](int64_t k, const T* from, int64_t n) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) gathered[k - begin + i] = from ? from[i] : T{};
    });
    f(begin, static_cast<const T*>(gathered), end - begin);
  }

  // Of neighbouring taps whose pixels are neighbours in memory, all that lie inside, or outside, are one.
  template <class F>
  AIGC_MEMBER void stretches(int64_t row, int64_t k, int64_t end, const F& f) const {
    const Pixel p = pixel(row);
    int64_t tap = k / channels, c = k % channels, tap_y = tap / a.taps[1], tap_x = tap % a.taps[1];
    while (k < end) {
      const int64_t left = a.taps[1] - tap_x, x = p.x + tap_x;
      int64_t taps = 1, seam = c < first_channels ? first_channels : channels;
      if (side_by_side) {
        taps = x < 0 ? smaller(left, -x) : x < a.width ? smaller(left, a.width - x) : left;
        seam = taps * channels;
      }
      const int64_t n = smaller(seam - c, end - k);
      f(k, at(p, tap_y, tap_x, c), n);
      k += n, c += n;
      if (c < (side_by_side ? seam : channels)) continue;  // a seam of two inputs, or the end
      c = 0, tap_x += taps;
      if (tap_x == a.taps[1]) tap_x = 0, ++tap_y;
    }
  }

  RowPlace place(int64_t row) const {
    const int64_t x = row % a.out_width, by = row / a.out_width, y = by % a.out_height, b = by / a.out_height;
    return {a.place[0] + b * a.place[1] + y * a.place[2] + x * a.place[3], b};
  }
};

}  // namespace aigc::AIGC_ISA
