// Convolution over an image packed once, where patches are packed once per tap.
//
// A task is a rectangle of output pixels times a range of panels. The pixels under it are packed into scratch
// as lines of the left operand, zeros beside the image included, so that a patch is lines at a constant pitch
// and a row of taps is one run of depth. Taps above and below the image are left out: they would add zeros.
// For vector levels; tiles want 16 rows at one pitch, which a narrow image doesn't have.
//
// Napkin maths: 3 x 3 over 64 channels packs 4 lines a pixel for 36 that it multiplies, and of a 7 x 7 image
// it leaves out a tenth of the products.
#pragma once

#include "cpu/patches.h"

namespace aigc::AIGC_ISA {

// Sums of so many rows and two panels take a fourth of the smallest L1.
constexpr int64_t kStripRows = 64;

// Output pixels of a task, its panels, and the bytes that it takes.
struct PaddedBlocking {
  int64_t height, width, panels;
  int64_t lines, sums, places;  // bytes of scratch beside each other

  int64_t bytes() const { return lines + sums + places; }
};

template <class P, class T>
class PaddedConv {
 public:
  static constexpr bool kPossible = !P::kTiles && !P::kScaled;

  // Whole lines of channels only: elsewhere the weight's tiles cross from one tap to the next.
  static bool serves(const PatchSource<P, T>& source) { return source.channels % P::kDepth == 0; }

  PaddedConv(const PatchSource<P, T>& source, const char* right, int64_t panels, const EpilogueArgs& epilogue)
      : source_(source),
        a_(source.a),
        right_(right),
        panels_(panels),
        epilogue_(epilogue),
        pixel_lines_(source.channels / P::kDepth),
        joined_((a_.dilation[1] == 1 || pixel_lines_ == 1) && pixel_lines_ < P::kStretch),
        blocking_(choose_blocking()) {}

  void run() const {
    const int64_t ranges = blocks_of(panels_, blocking_.panels);
    const int64_t down = blocks_of(a_.out_height, blocking_.height);
    const int64_t across = blocks_of(a_.out_width, blocking_.width);
    parallel_for(a_.batch * down * across * ranges, 1, a_.threads, [&](int64_t begin, int64_t end) {
      Task task{};
      task.lines = static_cast<char*>(scratch(size_t(blocking_.bytes())));
      task.sums = reinterpret_cast<float*>(task.lines + blocking_.lines);
      task.places = reinterpret_cast<RowPlace*>(task.lines + blocking_.lines + blocking_.sums);
      int64_t entered = -1;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t rectangle = item / ranges;
        if (rectangle != entered) enter(task, entered = rectangle, down, across);
        const int64_t panel = item % ranges * blocking_.panels;
        multiply_range(task, panel, smaller(panel + blocking_.panels, panels_));
      }
      release_scratch();
    });
  }

 private:
  struct Task {
    char* lines;
    float* sums;
    RowPlace* places;
    int64_t b, y, x, height, width;  // of the output
  };

  // Input pixels under so many output pixels.
  int64_t under(int64_t pixels, int axis) const {
    return (pixels - 1) * a_.stride[axis] + (a_.taps[axis] - 1) * a_.dilation[axis] + 1;
  }
  int64_t pixel_bytes() const { return pixel_lines_ * P::kLeft; }
  int64_t line_bytes(int64_t width) const { return under(width, 1) * pixel_bytes(); }

  // Estimated cycles of each choice, as in gemm.h.
  PaddedBlocking choose_blocking() const {
    constexpr int kParts[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512};
    const double product = 256.0 * P::kLeft / kTileLine / kTileRows;  // a line and a panel
    const int64_t tiles = a_.taps[0] * a_.taps[1] * pixel_lines_;
    const bool stays = size_t(panels_ * tiles * P::kRight) <= caches().l2 / 2;
    PaddedBlocking best{};
    double least = 0.0;
    bool fitting = false;  // whether the best so far fits; the first one is the whole image
    for (int across : kParts)
      for (int down : kParts)
        for (int ranges : kParts) {
          if (across > a_.out_width || down > a_.out_height || ranges > blocks_of(panels_, kPanels)) break;
          const int64_t width = blocks_of(a_.out_width, across), height = blocks_of(a_.out_height, down);
          const int64_t panels = round_up(blocks_of(panels_, ranges), kPanels), rows = height * width;
          const PaddedBlocking b{height,
                                 width,
                                 panels,
                                 round_up(under(height, 0) * line_bytes(width), kTileLine),
                                 rows * kPanels * kLanes * 4,
                                 rows * int64_t(sizeof(RowPlace))};
          const bool fits = size_t(b.bytes()) <= caches().l2 / 2;
          if (fitting && !fits) continue;
          const int64_t tasks = a_.batch * blocks_of(a_.out_height, height) * blocks_of(a_.out_width, width) *
                                blocks_of(panels_, panels);
          const double packing = 8.0 * double(under(height, 0) * under(width, 1) * pixel_lines_);
          const double weight = double(panels * tiles * P::kRight) / (stays ? 32.0 : 8.0);
          const double task = double(rows * panels * tiles) * product + packing + weight;
          const double cycles = double(blocks_of(tasks, a_.threads)) * task;
          if (best.height && fitting == fits && cycles >= least) continue;
          best = b, least = cycles, fitting = fits;
        }
    return best;
  }

  void enter(Task& task, int64_t rectangle, int64_t down, int64_t across) const {
    const int64_t y = rectangle / across % down;
    task.b = rectangle / across / down, task.y = y * blocking_.height;
    task.x = rectangle % across * blocking_.width;
    task.height = smaller(blocking_.height, a_.out_height - task.y);
    task.width = smaller(blocking_.width, a_.out_width - task.x);
    RowPlace* place = task.places;
    for (int64_t row = task.y; row < task.y + task.height; ++row) {
      RowPlace at = source_.place((task.b * a_.out_height + row) * a_.out_width + task.x);
      for (int64_t x = 0; x < task.width; ++x, at.row += a_.place[3]) *place++ = at;
    }
    const int64_t first = task.y * a_.stride[0] - a_.padding[0];
    for (int64_t i = 0; i < under(task.height, 0); ++i)
      if (uint64_t(first + i) < uint64_t(a_.height))
        pack_pixels(task, first + i, task.lines + i * line_bytes(task.width));
  }

  // Row y of the input.
  void pack_pixels(const Task& task, int64_t y, char* line) const {
    const int64_t first = task.x * a_.stride[1] - a_.padding[1], end = first + under(task.width, 1);
    const auto write = [&](int64_t x, const T* from, int64_t elements) {
      write_run<P>(line + (x - first) * pixel_bytes(), P::kLeft, 0, from, elements, 1.0f);
    };
    const int64_t begin = smaller(first > 0 ? first : 0, end), inside = smaller(end, a_.width);
    write(first, nullptr, (smaller(begin, end) - first) * source_.channels);
    if (source_.side_by_side && inside > begin) {
      write(begin, source_.at({task.b, y, begin}, 0, 0, 0), (inside - begin) * source_.channels);
    } else {
      for (int64_t x = begin; x < inside; ++x) {
        const int64_t seam = source_.first_channels, beyond = source_.channels - seam;
        char* to = line + (x - first) * pixel_bytes();
        write_run<P>(to, P::kLeft, 0, source_.at({task.b, y, x}, 0, 0, 0), seam, 1.0f);
        if (beyond) write_run<P>(to, P::kLeft, seam, source_.at({task.b, y, x}, 0, 0, seam), beyond, 1.0f);
      }
    }
    const int64_t after = inside > begin ? inside : begin;
    write(after, nullptr, (end - after) * source_.channels);
  }

  void multiply_range(const Task& task, int64_t panel, int64_t last) const {
    for (int64_t p = panel; p < last; p += kPanels)
      p + 1 < last ? multiply_panels<2>(task, p) : multiply_panels<1>(task, p);
  }

  // Rows of a rectangle that go through all taps before the next ones do.
  struct Strip {
    int64_t top, bottom, first, last;

    int64_t width() const { return last - first; }
    int64_t rows() const { return (bottom - top) * width(); }
  };

  // Panels that stay in L2 pass by few rows at a time, whose sums never leave L1; larger ones by all rows,
  // in chunks that stay in L1.
  template <int V>
  void multiply_panels(const Task& task, int64_t p) const {
    const int64_t panel = a_.taps[0] * a_.taps[1] * pixel_lines_ * P::kRight;
    if (V * panel > int64_t(caches().l2) / 4)
      return multiply_strip<V>(task, {0, task.height, 0, task.width}, p, panel);
    const int64_t width = even_block(task.width, kStripRows);
    for (int64_t y = 0; y < task.height; ++y)
      for (int64_t x = 0; x < task.width; x += width)
        multiply_strip<V>(task, {y, y + 1, x, smaller(x + width, task.width)}, p, panel);
  }

  template <int V>
  void multiply_strip(const Task& task, const Strip& strip, int64_t p, int64_t panel) const {
    const int64_t runs = joined_ ? 1 : a_.taps[1], run = a_.taps[1] / runs * pixel_lines_;
    const int64_t stretch = even_block(run, P::kStretch);
    const int64_t stretches = int64_t(caches().l1) / 4 * 3 / (kPanels * P::kRight) / stretch;
    const int64_t chunk = strip.rows() <= kStripRows ? run : (stretches < 1 ? 1 : stretches) * stretch;
    Piece piece{};
    piece.right = right_ + p * panel, piece.stretch = stretch;
    for (piece.tap_y = 0; piece.tap_y < a_.taps[0]; ++piece.tap_y)
      for (piece.tap_x = 0; piece.tap_x < runs; ++piece.tap_x)
        for (piece.tile = 0; piece.tile < run; piece.tile += chunk, piece.add = true) {
          piece.tiles = smaller(chunk, run - piece.tile);
          multiply_piece<V>(task, strip, piece, panel);
          piece.right += piece.tiles * P::kRight;
        }
    finish<T, SumsOf<P>>(epilogue_, task.places + strip.top * task.width + strip.first, int(strip.rows()), p,
                         V, task.sums, strip.rows() * kLanes);
  }

  // Depth that all pixels of a strip have in common: some tiles of a tap, or of a joined row of taps.
  struct Piece {
    int64_t tap_y, tap_x, tile, tiles, stretch;
    const char* right;
    bool add;  // to what earlier pieces gave
  };

  template <int V>
  void multiply_piece(const Task& task, const Strip& strip, const Piece& piece, int64_t panel) const {
    const int64_t pitch = a_.stride[1] * pixel_bytes(), sum_panel = strip.rows() * kLanes;
    const auto [top, bottom] = within(piece.tap_y, 0, task.y, strip.top, strip.bottom, a_.height);
    auto [first, last] = within(piece.tap_x, 1, task.x, strip.first, strip.last, a_.width);
    if (joined_) first = strip.first, last = strip.last;
    const bool all = bottom - top == strip.bottom - strip.top && last - first == strip.width();
    if (!piece.add && !all) std::memset(task.sums, 0, size_t(V * sum_panel) * 4);
    const int64_t steps = blocks_of(last - first, kMostRows);
    const int64_t left_tile = P::kLeft * (pixel_lines_ == 1 ? a_.dilation[1] : 1);
    const char* lines = task.lines + piece.tap_x * a_.dilation[1] * pixel_bytes() + piece.tile * P::kLeft;
    for (int64_t y = top; y < bottom; ++y) {
      const char* left = lines + (y * a_.stride[0] + piece.tap_y * a_.dilation[0]) * line_bytes(task.width);
      float* sums = task.sums + ((y - strip.top) * strip.width() - strip.first) * kLanes;
      for (int64_t step = 0, x = first; step < steps; ++step) {
        const int n = int((last - first) / steps + (step < (last - first) % steps));
        multiply_few<P, V>(n, left + x * pitch, pitch, left_tile, piece.right, panel, piece.tiles, 0,
                           sums + x * kLanes, sum_panel, piece.add || !all, piece.stretch);
        x += n;
      }
    }
  }

  struct Range {
    int64_t first, last;
  };

  // Which of the outputs [begin, end) after `from` have the tap inside the image.
  Range within(int64_t tap, int axis, int64_t from, int64_t begin, int64_t end, int64_t size) const {
    const int64_t stride = a_.stride[axis], at = from * stride - a_.padding[axis] + tap * a_.dilation[axis];
    const int64_t first = at < 0 ? blocks_of(-at, stride) : 0;
    const int64_t last = at < size ? blocks_of(size - at, stride) : 0;
    return {smaller(larger(first, begin), end), smaller(larger(last, begin), end)};
  }

  const PatchSource<P, T>& source_;
  const ConvArgs& a_;
  const char* right_;
  int64_t panels_;
  const EpilogueArgs& epilogue_;
  int64_t pixel_lines_;
  bool joined_;  // a row of taps is one run of lines; else taps beside the image are left out as well
  PaddedBlocking blocking_;
};

}  // namespace aigc::AIGC_ISA
