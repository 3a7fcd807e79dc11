// Images enlarged or reduced: the nearest pixel, or a blend of two rows and then of two columns.
// Memory-bound: the inputs that count and the result once. Channels-last pixels are vectors; of other images
// a row is blended as a vector first, then its columns are picked.
#include <cmath>

#include "cpu/vec.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

// Where a position of the result lies: between two of the input's, so much on the second.
struct Source {
  int64_t first, second;
  float weight;
};

// PyTorch's float32 arithmetic, so that the same pixel is chosen.
int64_t nearest(int64_t position, int64_t size, int64_t out_size) {
  if (size == out_size) return position;
  if (out_size == 2 * size) return position / 2;
  const float scale = float(size) / float(out_size);
  const int64_t found = int64_t(floorf(float(position) * scale));
  return found < size - 1 ? found : size - 1;
}

Source between(int64_t position, int64_t size, int64_t out_size, bool align_corners) {
  double place;
  if (align_corners) {
    place = out_size > 1 ? double(position) * double(size - 1) / double(out_size - 1) : 0.0;
  } else {
    place = (double(position) + 0.5) * (double(size) / double(out_size)) - 0.5;
  }
  if (place < 0.0) place = 0.0;
  int64_t first = int64_t(place);
  if (first > size - 1) first = size - 1;
  const double weight = place - double(first);
  return {first, first < size - 1 ? first + 1 : first, float(weight < 1.0 ? weight : 1.0)};
}

Source source_of(const ResizeArgs& a, int64_t position, int64_t size, int64_t out_size) {
  if (a.bilinear) return between(position, size, out_size, a.align_corners);
  const int64_t found = nearest(position, size, out_size);
  return {found, found, 0.0f};
}

// (1 - weight) a + weight b.
AIGC_INLINE Vec blend(Vec a, Vec b, float weight) { return a * (1.0f - weight) + b * weight; }
AIGC_INLINE float blend(float a, float b, float weight) { return a * (1.0f - weight) + b * weight; }

template <class T>
void blend_pixel(const T* const (&corner)[4], float row_weight, float column_weight, T* out,
                 int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int n = channels - c < kLanes ? int(channels - c) : kLanes;
    Vec v[4];
    for (int k = 0; k < 4; ++k) v[k] = n == kLanes ? load(corner[k] + c) : load_n(corner[k] + c, n);
    const Vec left = blend(v[0], v[2], row_weight), right = blend(v[1], v[3], row_weight);
    const Vec result = blend(left, right, column_weight);
    n == kLanes ? store(out + c, result) : store_n(out + c, result, n);
  }
}

template <class T>
class Rows {
 public:
  Rows(const ResizeArgs& a, const Source* columns) : a_(a), columns_(columns) {}

  // A row of pixels whose channels are contiguous.
  void pixels(int64_t b, int64_t y) const {
    const Source row = source_of(a_, y, a_.height, a_.out_height);
    const T* top = x(b, 0, row.first);
    const T* bottom = x(b, 0, row.second);
    T* out = result(b, 0, y);
    for (int64_t i = 0; i < a_.out_width; ++i, out += a_.out_strides[3]) {
      const int64_t left = columns_[i].first * a_.x_strides[3], right = columns_[i].second * a_.x_strides[3];
      if (a_.bilinear) {
        blend_pixel<T>({top + left, top + right, bottom + left, bottom + right}, row.weight,
                       columns_[i].weight, out, a_.channels);
      } else {
        std::memcpy(out, top + left, size_t(a_.channels) * sizeof(T));
      }
    }
  }

  // One channel's row.
  void columns(int64_t b, int64_t c, int64_t y, float* blended) const {
    const Source row = source_of(a_, y, a_.height, a_.out_height);
    const T* top = x(b, c, row.first);
    const T* bottom = x(b, c, row.second);
    T* out = result(b, c, y);
    if (!a_.bilinear) {
      for (int64_t i = 0; i < a_.out_width; ++i) out[i] = top[columns_[i].first];
      return;
    }
    int64_t i = 0;
    for (; i + kLanes <= a_.width; i += kLanes)
      store(blended + i, blend(load(top + i), load(bottom + i), row.weight));
    for (; i < a_.width; ++i) blended[i] = blend(to_float(top[i]), to_float(bottom[i]), row.weight);
    for (int64_t j = 0; j < a_.out_width; ++j)
      put(out + j, blend(blended[columns_[j].first], blended[columns_[j].second], columns_[j].weight));
  }

 private:
  const T* x(int64_t b, int64_t c, int64_t y) const {
    return static_cast<const T*>(a_.x) + b * a_.x_strides[0] + c * a_.x_strides[1] + y * a_.x_strides[2];
  }
  T* result(int64_t b, int64_t c, int64_t y) const {
    return static_cast<T*>(a_.out) + b * a_.out_strides[0] + c * a_.out_strides[1] + y * a_.out_strides[2];
  }

  const ResizeArgs& a_;
  const Source* columns_;
};

template <class T>
void run(const ResizeArgs& a, bool channels_last) {
  const int64_t planes = channels_last ? 1 : a.channels,
                elements = a.out_width * (channels_last ? a.channels : 1);
  parallel_for(
      a.batch * planes * a.out_height, kGrain / elements + 1, a.threads, [&](int64_t begin, int64_t end) {
        // The columns are each chunk's own: as cheap as a few rows, and no allocation to share.
        const size_t bytes = size_t(a.out_width) * sizeof(Source);
        char* memory = static_cast<char*>(scratch(bytes + size_t(a.width) * sizeof(float)));
        auto* columns = reinterpret_cast<Source*>(memory);
        for (int64_t i = 0; i < a.out_width; ++i) columns[i] = source_of(a, i, a.width, a.out_width);
        const Rows<T> rows(a, columns);
        for (int64_t item = begin; item < end; ++item) {
          const int64_t y = item % a.out_height, plane = item / a.out_height;
          if (channels_last) {
            rows.pixels(plane, y);
          } else {
            rows.columns(plane / planes, plane % planes, y, reinterpret_cast<float*>(memory + bytes));
          }
        }
        release_scratch();
      });
}

}  // namespace

void resize(const ResizeArgs& a) {
  if (a.batch * a.channels * a.out_height * a.out_width == 0) return;
  const bool channels_last = a.channels > 1 && a.x_strides[1] == 1 && a.out_strides[1] == 1;
  if (a.dtype == DType::kFloat32) {
    run<float>(a, channels_last);
  } else {
    run<uint16_t>(a, channels_last);
  }
}

}  // namespace aigc::AIGC_ISA
