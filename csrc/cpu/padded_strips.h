// Vector levels' convolution over an image packed once.
//
// A patch is lines at a constant pitch and a row of taps is one run of depth. Taps above and below the image
// are left out: they would add zeros.
//
// Napkin maths: 3 x 3 over 64 channels packs 4 lines a pixel for 36 that it multiplies, and of a 7 x 7 image
// it leaves out a tenth of the products.
#pragma once

#include "cpu/padded.h"

namespace aigc::AIGC_ISA {

// Sums of so many rows and two panels take a fourth of the smallest L1.
constexpr int64_t kStripRows = 64;

template <class P, class T>
class PaddedStrips : PaddedImage<P, T> {
 public:
  // Whole lines of channels only: elsewhere the weight's tiles cross from one tap to the next.
  static bool serves(const PatchSource<P, T>& source, int64_t) { return source.channels % P::kDepth == 0; }

  PaddedStrips(const PatchSource<P, T>& source, const char* right, int64_t panels,
               const EpilogueArgs& epilogue)
      : PaddedImage<P, T>(source, right, panels, epilogue),
        joined_((a_.dilation[1] == 1 || pixel_lines_ == 1) && pixel_lines_ < P::kStretch) {}

  void run() const {
    constexpr double kProduct = 256.0 * P::kLeft / kTileLine / kTileRows;  // cycles of a line and a panel
    const PaddedBlocking blocking = this->choose_blocking(
        1, 8.0, [](int64_t height, int64_t width) { return height * width * kPanels * kLanes * 4; },
        [&](const PaddedBlocking& b) { return double(b.height * b.width * b.panels * tiles_) * kProduct; });
    PaddedImage<P, T>::run(blocking, [&](const Task& task, int64_t panel, int64_t last) {
      for (int64_t p = panel; p < last; p += kPanels)
        p + 1 < last ? multiply_panels<2>(task, p) : multiply_panels<1>(task, p);
    });
  }

 private:
  using Task = typename PaddedImage<P, T>::Task;
  using PaddedImage<P, T>::a_, PaddedImage<P, T>::right_, PaddedImage<P, T>::epilogue_;
  using PaddedImage<P, T>::pixel_lines_, PaddedImage<P, T>::tiles_;
  using PaddedImage<P, T>::pixel_bytes, PaddedImage<P, T>::line_bytes;

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
    const int64_t panel = tiles_ * P::kRight;
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

  bool joined_;  // a row of taps is one run of lines; else taps beside the image are left out as well
};

}  // namespace aigc::AIGC_ISA
