// Convolution over an image packed once, where gathering packs every patch, a pixel once per tap.
//
// A task is a rectangle of output pixels times a range of panels. The pixels under it are packed into scratch
// as lines of the left operand, zeros beside the image included, so that the lines of neighbouring outputs'
// patches lie at a constant pitch for every tap. Vector levels have a pixel's lines beside each other
// (padded_strips.h), tiles those of a row's pixels (padded_tiles.h).
#pragma once

#include "cpu/patches.h"

namespace aigc::AIGC_ISA {

// Output pixels of a task, its panels, and the bytes that it takes.
struct PaddedBlocking {
  int64_t height, width, panels;
  int64_t lines, sums, places;  // bytes of scratch beside each other

  int64_t bytes() const { return lines + sums + places; }
};

// What both ways share: a derived class chooses a blocking and multiplies.
template <class P, class T>
class PaddedImage {
 protected:
  struct Task {
    char* lines;
    float* sums;
    RowPlace* places;
    int64_t b, y, x, height, width;  // of the output
  };

  PaddedImage(const PatchSource<P, T>& source, const char* right, int64_t panels,
              const EpilogueArgs& epilogue)
      : source_(source),
        a_(source.a),
        right_(right),
        panels_(panels),
        epilogue_(epilogue),
        pixel_lines_(source.channels / P::kDepth),
        tiles_(a_.taps[0] * a_.taps[1] * pixel_lines_) {}

  // multiply(task, first panel, last) for all rectangles and ranges of panels.
  template <class F>
  void run(const PaddedBlocking& blocking, const F& multiply) const {
    const int64_t ranges = blocks_of(panels_, blocking.panels);
    const int64_t down = blocks_of(a_.out_height, blocking.height);
    const int64_t across = blocks_of(a_.out_width, blocking.width);
    parallel_for(a_.batch * down * across * ranges, 1, a_.threads, [&](int64_t begin, int64_t end) {
      Task task{};
      task.lines = static_cast<char*>(scratch(size_t(blocking.bytes())));
      task.sums = reinterpret_cast<float*>(task.lines + blocking.lines);
      task.places = reinterpret_cast<RowPlace*>(task.lines + blocking.lines + blocking.sums);
      {
        const TileSession<P::kTiles> session;
        int64_t entered = -1;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t rectangle = item / ranges;
          if (rectangle != entered) enter(task, blocking, entered = rectangle, down, across);
          const int64_t panel = item % ranges * blocking.panels;
          multiply(task, panel, smaller(panel + blocking.panels, panels_));
        }
      }
      release_scratch();
    });
  }

  // Input pixels under so many output pixels.
  static int64_t under(const ConvArgs& a, int64_t pixels, int axis) {
    return (pixels - 1) * a.stride[axis] + (a.taps[axis] - 1) * a.dilation[axis] + 1;
  }
  int64_t under(int64_t pixels, int axis) const { return under(a_, pixels, axis); }
  int64_t pixel_bytes() const { return pixel_lines_ * P::kLeft; }
  int64_t line_bytes(int64_t width) const { return under(width, 1) * pixel_bytes(); }

  // The blocking of fewest estimated cycles, as in gemm.h, among those that fit L2 if any does. `unit`: what
  // widths are multiples of. sums(height, width): bytes; dots(blocking): cycles of a task's products;
  // line: cycles of packing one.
  template <class Sums, class Dots>
  PaddedBlocking choose_blocking(int64_t unit, double line, const Sums& sums, const Dots& dots) const {
    constexpr int kParts[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512};
    const int64_t units = blocks_of(a_.out_width, unit);
    const bool stays = size_t(panels_ * tiles_ * P::kRight) <= caches().l2 / 2;
    PaddedBlocking best{};
    double least = 0.0;
    bool fitting = false;  // whether the best so far fits; the first one is the whole image
    for (int across : kParts)
      for (int down : kParts)
        for (int ranges : kParts) {
          if (across > units || down > a_.out_height || ranges > blocks_of(panels_, kPanels)) break;
          const int64_t width = smaller(unit * blocks_of(units, across), a_.out_width);
          const int64_t height = blocks_of(a_.out_height, down);
          const int64_t panels = round_up(blocks_of(panels_, ranges), kPanels);
          // Loads of a short last row tile go past it.
          const int64_t beyond = (round_up(width, unit) - width) * a_.stride[1] * P::kLeft;
          const PaddedBlocking b{height,
                                 width,
                                 panels,
                                 round_up(under(height, 0) * line_bytes(width) + beyond, kTileLine),
                                 sums(height, width),
                                 height * width * int64_t(sizeof(RowPlace))};
          const bool fits = size_t(b.bytes()) <= caches().l2 / 2;
          if (fitting && !fits) continue;
          const int64_t tasks = a_.batch * blocks_of(a_.out_height, height) * blocks_of(a_.out_width, width) *
                                blocks_of(panels_, panels);
          const double packing = line * double(under(height, 0) * under(width, 1) * pixel_lines_);
          const double weight = double(panels * tiles_ * P::kRight) / (stays ? 32.0 : 8.0);
          const double cycles = double(blocks_of(tasks, a_.threads)) * (dots(b) + packing + weight);
          if (best.height && fitting == fits && cycles >= least) continue;
          best = b, least = cycles, fitting = fits;
        }
    return best;
  }

  const PatchSource<P, T>& source_;
  const ConvArgs& a_;
  const char* right_;
  int64_t panels_;
  const EpilogueArgs& epilogue_;
  int64_t pixel_lines_, tiles_;  // depth tiles: of a pixel, of a patch

 private:
  void enter(Task& task, const PaddedBlocking& blocking, int64_t rectangle, int64_t down,
             int64_t across) const {
    const int64_t y = rectangle / across % down;
    task.b = rectangle / across / down, task.y = y * blocking.height;
    task.x = rectangle % across * blocking.width;
    task.height = smaller(blocking.height, a_.out_height - task.y);
    task.width = smaller(blocking.width, a_.out_width - task.x);
    RowPlace* place = task.places;
    for (int64_t row = task.y; row < task.y + task.height; ++row) {
      RowPlace at = source_.place((task.b * a_.out_height + row) * a_.out_width + task.x);
      for (int64_t x = 0; x < task.width; ++x, at.row += a_.place[3]) *place++ = at;
    }
    const int64_t first = task.y * a_.stride[0] - a_.padding[0], bytes = line_bytes(task.width);
    for (int64_t i = 0; i < under(task.height, 0); ++i) {
      if (uint64_t(first + i) < uint64_t(a_.height)) pack_pixels(task, first + i, task.lines + i * bytes);
      else if (P::kTiles)  // vector levels leave taps out that lie there
        std::memset(task.lines + i * bytes, 0, size_t(bytes));
    }
  }

  // Row y of the input.
  void pack_pixels(const Task& task, int64_t y, char* line) const {
    const int64_t first = task.x * a_.stride[1] - a_.padding[1], end = first + under(task.width, 1);
    // Bytes between neighbouring pixels, and between a pixel's lines.
    const int64_t next = P::kTiles ? P::kLeft : pixel_bytes();
    const int64_t pitch = P::kTiles ? under(task.width, 1) * P::kLeft : P::kLeft;
    const auto write = [&](int64_t x, const T* from, int64_t pixels) {
      char* to = line + (x - first) * next;
      if constexpr (P::kTiles) {
        for (; pixels > 0; --pixels, to += next) {
          write_run<P>(to, pitch, 0, from, source_.channels, 1.0f);
          if (from) from += source_.channels;
        }
      } else {
        write_run<P>(to, pitch, 0, from, pixels * source_.channels, 1.0f);
      }
    };
    const int64_t begin = smaller(first > 0 ? first : 0, end), inside = smaller(end, a_.width);
    write(first, nullptr, smaller(begin, end) - first);
    if (source_.side_by_side && inside > begin) {
      write(begin, source_.at({task.b, y, begin}, 0, 0, 0), inside - begin);
    } else {
      for (int64_t x = begin; x < inside; ++x) {
        const int64_t seam = source_.first_channels, beyond = source_.channels - seam;
        char* to = line + (x - first) * next;
        write_run<P>(to, pitch, 0, source_.at({task.b, y, x}, 0, 0, 0), seam, 1.0f);
        if (beyond) write_run<P>(to, pitch, seam, source_.at({task.b, y, x}, 0, 0, seam), beyond, 1.0f);
      }
    }
    const int64_t after = inside > begin ? inside : begin;
    write(after, nullptr, end - after);
  }
};

}  // namespace aigc::AIGC_ISA
