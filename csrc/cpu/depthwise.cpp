// Depthwise convolution: each channel with taps of its own.
//
// 2 K operations an output for K taps; floor: reading the input and writing the result. A task is a rectangle
// of output pixels, all channels, whose input rows under an output row stay in L2. Neighbouring outputs of 16
// channels are summed together; of 3, 5 or 7 taps side by side each pixel is loaded once for all that it
// belongs to. Taps beside the image are left out, and outputs that have such columns go one by one.
//
// Napkin maths, an output of 3 x 3 taps: 9 FMAs, 3.4 loads (of 16 outputs, 54 pixels), 4 more operations.
#include "cpu/epilogue.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

// Outputs that are summed together: their sums, a row of taps and a pixel fit the registers.
#if defined(__AVX512F__)
constexpr int kPixels = 16;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kPixels = 4;
#else
constexpr int kPixels = 2;
#endif

// 16 channels of a pixel, or the last few.
struct AllChannels {
  template <class T>
  AIGC_MEMBER Vec operator()(const T* p) const {
    return load(p);
  }
};

struct LastChannels {
  int n;

  AIGC_MEMBER Vec operator()(const float* p) const {
#if defined(__AVX512F__)
    Vec v;
    v.part[0] = _mm512_maskz_loadu_ps(__mmask16((1 << n) - 1), p);
    return v;
#else
    return load_n(p, n);
#endif
  }
  AIGC_MEMBER Vec operator()(const uint16_t* p) const {
#if defined(__AVX512F__)
    const __m256i half = _mm256_maskz_loadu_epi16(__mmask16((1 << n) - 1), p);
    UVec bits;
    bits.part[0] = UVec::Part(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    return Vec(bits);
#else
    return load_n(p, n);
#endif
  }
};

// The taps of an output, or of some neighbours, that lie inside the image; steps in elements of the input.
template <class T>
struct Taps {
  const T* from;  // the first output's first tap
  const float* weight;
  int64_t rows, columns;  // taps
  int64_t down, across;   // between them
  int64_t weight_row;     // floats
  int64_t next;           // from one output to the next
};

// Where sums go: to wait for the epilogue, or, with no more to come than a bias, to the result.
struct ToSums {
  float* to;

  AIGC_MEMBER void operator()(int64_t r, Vec sum) const { store(to + r * kLanes, sum); }
  AIGC_MEMBER ToSums from(int64_t r) const { return {to + r * kLanes}; }
};

template <class T>
struct ToResult {
  T* to;
  int64_t pitch;
  Vec bias;

  AIGC_MEMBER void operator()(int64_t r, Vec sum) const { store(to + r * pitch, sum + bias); }
  AIGC_MEMBER ToResult from(int64_t r) const { return {to + r * pitch, pitch, bias}; }
};

// Sums of R neighbours.
template <int R, class T, class Load, class Put>
AIGC_INLINE void sum_pixels(const Taps<T>& t, const Load& pixel, const Put& put) {
  Vec acc[R];
  for (Vec& each : acc) each = splat(0.0f);
  for (int64_t row = 0; row < t.rows; ++row) {
    const T* from = t.from + row * t.down;
    const float* weight = t.weight + row * t.weight_row;
    for (int64_t column = 0; column < t.columns; ++column, from += t.across, weight += kLanes) {
      const Vec w = load(weight);
      for (int r = 0; r < R; ++r) acc[r] = madd(pixel(from + r * t.next), w, acc[r]);
    }
  }
  for (int r = 0; r < R; ++r) put(r, acc[r]);
}

// The same where K taps side by side are neighbours, as outputs are: a pixel is loaded once for all of them.
template <int R, int K, class T, class Load, class Put>
AIGC_INLINE void slide_pixels(const Taps<T>& t, const Load& pixel, const Put& put) {
  Vec acc[R];
  for (Vec& each : acc) each = splat(0.0f);
  for (int64_t row = 0; row < t.rows; ++row) {
    const T* from = t.from + row * t.down;
    const float* weight = t.weight + row * t.weight_row;
    Vec w[K];
    for (int k = 0; k < K; ++k) w[k] = load(weight + k * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < R + K - 1; ++i, from += t.next) {
      const Vec x = pixel(from);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        if (i >= k && i - k < R) acc[i - k] = madd(x, w[k], acc[i - k]);
    }
  }
  for (int r = 0; r < R; ++r) put(r, acc[r]);
}

// n neighbours, R at a time; those of the last step may be had before, and get the same bits again. K: as
// above, 0 for all else.
template <int K, int R = kPixels, class T, class Load, class Put>
inline void sum_run(int64_t n, const Taps<T>& t, const Load& pixel, const Put& put) {
  if constexpr (R > 1)
    if (n < R) return sum_run<K, R / 2>(n, t, pixel, put);
  for (int64_t done = 0; done < n; done += R) {
    const int64_t at = smaller(done, n - R);
    Taps<T> run = t;
    run.from += at * t.next;
    if constexpr (K > 0) {
      slide_pixels<R, K>(run, pixel, put.from(at));
    } else {
      sum_pixels<R>(run, pixel, put.from(at));
    }
  }
}

template <class T>
class Depthwise {
 public:
  explicit Depthwise(const ConvArgs& args)
      : a_(args),
        panels_(blocks_of(args.epilogue.columns, kLanes)),
        // A panel as a float32 product has it: depth in whole tiles.
        panel_(round_up(args.taps[0] * args.taps[1], kTileRows) * kLanes),
        plain_(args.epilogue.act == Activation::kNone && !args.epilogue.gate && !args.epilogue.residual &&
               !args.epilogue.sample_bias),
        inside_(inside()) {
    choose_blocking();
  }

  void run() const {
    const int64_t down = blocks_of(a_.out_height, height_), across = blocks_of(a_.out_width, width_);
    parallel_for(a_.batch * down * across, 1, a_.threads, [&](int64_t begin, int64_t end) {
      Task task{};
      task.sums = static_cast<float*>(scratch(size_t(bytes())));
      task.places = reinterpret_cast<RowPlace*>(task.sums + width_ * kLanes);
      for (int64_t item = begin; item < end; ++item) {
        task.b = item / across / down;
        task.x = item % across * width_, task.width = smaller(width_, a_.out_width - task.x);
        const int64_t y = item / across % down * height_, last = smaller(y + height_, a_.out_height);
        for (task.y = y; task.y < last; ++task.y) run_row(task);
      }
      release_scratch();
    });
  }

 private:
  struct Task {
    float* sums;  // of a panel
    RowPlace* places;
    int64_t b, y, x, width;  // of an output row
  };

  struct Range {
    int64_t first, last;
  };

  // Of outputs: where its first row of taps is, the rows inside, and the outputs with all columns inside.
  struct Row {
    int64_t y;
    Range rows;
    int64_t first, last;
  };

  int64_t reach(int axis) const { return (a_.taps[axis] - 1) * a_.dilation[axis] + 1; }
  int64_t bytes() const { return width_ * (kLanes * 4 + int64_t(sizeof(RowPlace))); }

  // The outputs of a row that have all their taps inside. Repeated pixels are looked up one by one.
  Range inside() const {
    const int64_t room = a_.width - reach(1) + a_.padding[1], first = blocks_of(a_.padding[1], a_.stride[1]);
    const int64_t last = room < 0 || a_.upsample > 1 ? 0 : smaller(room / a_.stride[1] + 1, a_.out_width);
    return {smaller(first, last), last};
  }

  // The taps of an output at `first` that lie inside.
  Range within(int64_t first, int axis, int64_t size) const {
    const int64_t dilation = a_.dilation[axis], taps = a_.taps[axis];
    if (first >= 0 && first + (taps - 1) * dilation < size) return {0, taps};
    const auto steps = [=](int64_t pixels) { return dilation == 1 ? pixels : blocks_of(pixels, dilation); };
    const int64_t begin = first < 0 ? smaller(steps(-first), taps) : 0;
    const int64_t end = first < size ? smaller(steps(size - first), taps) : 0;
    return {begin, end < begin ? begin : end};
  }

  // All channels of so many columns that the input rows under an output row stay in L2 beside what else is
  // there: memory is read from one end to the other. As many tasks as give every thread several.
  void choose_blocking() {
    const int64_t pixel = a_.taps[0] * a_.epilogue.columns * int64_t(sizeof(T));
    const int64_t most = (int64_t(caches().l2) / 4 / pixel - reach(1)) / a_.stride[1] + 1;
    width_ = even_block(a_.out_width, most < kPixels ? kPixels : most);
    const int64_t tasks = a_.batch * blocks_of(a_.out_width, width_);
    height_ = blocks_of(a_.out_height, smaller(blocks_of(4 * a_.threads, tasks), a_.out_height));
  }

  void run_row(const Task& task) const {
    Row row{};
    const int64_t y = task.y * a_.stride[0] - a_.padding[0];
    row.y = y, row.rows = within(y, 0, a_.height);
    const int64_t end = task.x + task.width;
    row.first = smaller(inside_.first > task.x ? inside_.first : task.x, end);
    row.last = smaller(inside_.last > row.first ? inside_.last : row.first, end);
    const int64_t place = a_.place[0] + task.b * a_.place[1] + task.y * a_.place[2] + task.x * a_.place[3];
    const int64_t pitch = a_.place[3] * a_.epilogue.out_stride;
    const int64_t whole = a_.epilogue.columns / kLanes;
    if (plain_) {
      for (int64_t panel = 0; panel < whole; ++panel) {
        T* to = static_cast<T*>(a_.epilogue.out) + place * a_.epilogue.out_stride + panel * kLanes;
        const void* bias = a_.epilogue.bias;
        const Vec term = bias ? load_columns<T>(bias, panel * kLanes, kLanes) : splat(0.0f);
        sum_row(task, row, panel, AllChannels{}, ToResult<T>{to, pitch, term});
      }
      if (whole == panels_) return;
    }
    for (int64_t x = 0; x < task.width; ++x) task.places[x] = {place + x * a_.place[3], task.b};
    for (int64_t panel = plain_ ? whole : 0; panel < panels_; ++panel) {
      const LastChannels last{int(a_.epilogue.columns - panel * kLanes)};
      panel < whole ? sum_row(task, row, panel, AllChannels{}, ToSums{task.sums})
                    : sum_row(task, row, panel, last, ToSums{task.sums});
      finish<T, PlainSums>(a_.epilogue, task.places, int(task.width), panel, 1, task.sums, 0);
    }
  }

  template <class Load, class Put>
  void sum_row(const Task& task, const Row& row, int64_t panel, const Load& pixel, const Put& put) const {
    const int64_t* s = a_.strides[0];
    Taps<T> t{};
    t.from = static_cast<const T*>(a_.inputs[0]) + task.b * s[0] + panel * kLanes;
    t.weight = static_cast<const float*>(a_.weight) + panel * panel_ + row.rows.first * a_.taps[1] * kLanes;
    t.rows = row.rows.last - row.rows.first, t.columns = a_.taps[1];
    t.down = a_.dilation[0] * s[1], t.across = a_.dilation[1] * s[2];
    t.weight_row = a_.taps[1] * kLanes, t.next = a_.stride[1] * s[2];
    if (a_.upsample > 1) {
      for (int64_t x = 0; x < task.width; ++x) sum_repeated(t, row, task.x + x, pixel, put.from(x));
      return;
    }
    t.from += (row.y + row.rows.first * a_.dilation[0]) * s[1];
    const int64_t end = task.x + task.width;
    for (int64_t x = task.x; x < row.first; ++x) sum_beside(t, x, pixel, put.from(x - task.x));
    if (row.last > row.first) {
      Taps<T> run = t;
      run.from += (row.first * a_.stride[1] - a_.padding[1]) * s[2];
      sum_inside(row.last - row.first, run, pixel, put.from(row.first - task.x));
    }
    for (int64_t x = row.last; x < end; ++x) sum_beside(t, x, pixel, put.from(x - task.x));
  }

  template <class Load, class Put>
  void sum_inside(int64_t n, const Taps<T>& t, const Load& pixel, const Put& put) const {
    const bool neighbours = a_.stride[1] == 1 && a_.dilation[1] == 1;
    if (neighbours && t.columns == 3) return sum_run<3>(n, t, pixel, put);
    if (neighbours && t.columns == 5) return sum_run<5>(n, t, pixel, put);
    if (neighbours && t.columns == 7) return sum_run<7>(n, t, pixel, put);
    sum_run<0>(n, t, pixel, put);
  }

  // An output some of whose columns lie outside.
  template <class Load, class Put>
  AIGC_MEMBER void sum_beside(Taps<T> t, int64_t x, const Load& pixel, const Put& put) const {
    const int64_t first = x * a_.stride[1] - a_.padding[1];
    const Range columns = within(first, 1, a_.width);
    t.from += (first + columns.first * a_.dilation[1]) * a_.strides[0][2];
    t.weight += columns.first * kLanes, t.columns = columns.last - columns.first;
    sum_pixels<1>(t, pixel, put);
  }

  // An output of an enlarged image.
  template <class Load, class Put>
  void sum_repeated(const Taps<T>& t, const Row& row, int64_t x, const Load& pixel, const Put& put) const {
    const int64_t first = x * a_.stride[1] - a_.padding[1], up = a_.upsample;
    const Range columns = within(first, 1, a_.width);
    Vec acc = splat(0.0f);
    for (int64_t i = row.rows.first; i < row.rows.last; ++i)
      for (int64_t j = columns.first; j < columns.last; ++j) {
        const int64_t y = (row.y + i * a_.dilation[0]) / up, at = (first + j * a_.dilation[1]) / up;
        const float* weight = t.weight + (i - row.rows.first) * t.weight_row + j * kLanes;
        acc = madd(pixel(t.from + y * a_.strides[0][1] + at * a_.strides[0][2]), load(weight), acc);
      }
    put(0, acc);
  }

  const ConvArgs& a_;
  int64_t panels_, panel_;  // panel_: floats of a panel of the weight
  bool plain_;              // nothing follows but a bias
  Range inside_;
  int64_t height_ = 0, width_ = 0;  // of a task
};

}  // namespace

void depthwise(const ConvArgs& a) {
  a.epilogue.dtype == DType::kFloat32 ? Depthwise<float>(a).run() : Depthwise<uint16_t>(a).run();
}

}  // namespace aigc::AIGC_ISA
