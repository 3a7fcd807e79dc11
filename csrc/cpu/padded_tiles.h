// Tile levels' convolution over an image packed once.
//
// A left tile is the lines of 16 neighbouring outputs of an image row at one tap and depth tile of channels.
// So that they lie `stride` lines apart, a packed row of the image is planes, one for each depth tile of the
// channels: the first lines of all its pixels, then the second ones. (Whole pixels beside each other would
// put the 16 lines at a pitch of a power of two for most channel counts: into a few sets of L1, at half the
// speed.) The last row tile of an output row may reach beyond it, and then computes lanes that nobody reads.
//
// A pair of panels over a chunk of depth, taps and channels, stays in L1 while all row tiles of the rectangle
// pass by; their sums wait in L2 for the next chunk. Every sum takes its products in order of depth, as in
// gemm.h, so both ways give the same bits.
//
// Napkin maths for 3 x 3 taps and N output channels: 16 outputs times a depth tile of channels are 9 N cycles
// of dots. Gathering copies 9 tiles for them, 48 cycles each, this way 1.1 to 1.3: 1.3 times as fast at N =
// 128, 1.13 at N = 320. Where images are narrow, the lanes that nobody reads cost more than that.
#pragma once

#include "cpu/padded.h"

namespace aigc::AIGC_ISA {

template <class P, class T>
class PaddedTiles;

#if defined(__AMX_TILE__) || defined(AIGC_EMULATE_TILES)

template <class P, class T>
class PaddedTiles : PaddedImage<P, T> {
 public:
  // Where it takes fewer cycles of one image than gathering. Whole lines of channels only: elsewhere the
  // weight's tiles cross from one tap to the next.
  static bool serves(const PatchSource<P, T>& source, int64_t panels) {
    const ConvArgs& a = source.a;
    if (source.channels % P::kDepth) return false;
    const double dots = kDot * double(panels), taps = double(a.taps[0] * a.taps[1]);
    const int64_t gathered = blocks_of(a.out_height * a.out_width, kTileRows);
    const int64_t packed = a.out_height * blocks_of(a.out_width, kTileRows);
    const int64_t pixels =
        PaddedImage<P, T>::under(a, a.out_height, 0) * PaddedImage<P, T>::under(a, a.out_width, 1);
    return taps * double(packed) * dots + kLine * double(pixels) <
           taps * double(gathered) * (dots + kLine * kTileRows);
  }

  PaddedTiles(const PatchSource<P, T>& source, const char* right, int64_t panels,
              const EpilogueArgs& epilogue)
      : PaddedImage<P, T>(source, right, panels, epilogue),
        chunk_(even_block(tiles_, larger(int64_t(caches().l1) / 2 / (kPanels * P::kRight), 1))) {}

  void run() const {
    const PaddedBlocking blocking = this->choose_blocking(
        kTileRows, kLine,
        [](int64_t height, int64_t width) { return row_tiles(height, width) * kPanels * kTileFloats * 4; },
        [&](const PaddedBlocking& b) {
          // A lone row tile takes longer: see gemm.h.
          const int64_t tiles = row_tiles(b.height, b.width);
          return (double(tiles) + double(tiles % 2) * 10.0 / 16.0) * double(b.panels * tiles_) * kDot;
        });
    PaddedImage<P, T>::run(blocking, [&](const Task& task, int64_t panel, int64_t last) {
      for (int64_t p = panel; p < last; p += kPanels)
        p + 1 < last ? multiply_panels<2>(task, p) : multiply_panels<1>(task, p);
    });
  }

 private:
  using Task = typename PaddedImage<P, T>::Task;
  using PaddedImage<P, T>::a_, PaddedImage<P, T>::right_, PaddedImage<P, T>::epilogue_;
  using PaddedImage<P, T>::pixel_lines_, PaddedImage<P, T>::tiles_;
  using PaddedImage<P, T>::line_bytes;

  // Cycles of a row tile, panel and depth tile, and of packing a line: as in gemm.h.
  static constexpr double kDot = 16.0 * (sizeof P::kParts / sizeof(Part)), kLine = 48.0 / kTileRows;

  static int64_t row_tiles(int64_t height, int64_t width) { return height * blocks_of(width, kTileRows); }

  // Where a patch has the depth tiles of a chunk: bytes from its first line. The divisions hide behind dots.
  struct Depth {
    int64_t planes, taps;  // of a pixel; of a row
    int64_t plane_bytes, tap_bytes, row_bytes;
    int64_t first;  // depth tile of the chunk

    AIGC_MEMBER int64_t operator()(int64_t t) const {
      const uint32_t tile = uint32_t(first + t), tap = tile / uint32_t(planes);
      const uint32_t plane = tile % uint32_t(planes);
      return tap / uint32_t(taps) * row_bytes + tap % uint32_t(taps) * tap_bytes + plane * plane_bytes;
    }
  };

  template <int V>
  void multiply_panels(const Task& task, int64_t p) const {
    const int64_t bytes = line_bytes(task.width), panel = tiles_ * P::kRight;
    Depth depth{pixel_lines_,           a_.taps[1], bytes / pixel_lines_, a_.dilation[1] * P::kLeft,
                a_.dilation[0] * bytes, 0};
    for (; depth.first < tiles_; depth.first += chunk_) {
      const int64_t tiles = smaller(chunk_, tiles_ - depth.first);
      multiply_chunk<V>(task, depth, right_ + p * panel + depth.first * P::kRight, panel, tiles, p);
    }
  }

  template <int V>
  void multiply_chunk(const Task& task, const Depth& depth, const char* right, int64_t panel, int64_t tiles,
                      int64_t p) const {
    const int64_t across = blocks_of(task.width, kTileRows), count = task.height * across;
    const int64_t pitch = a_.stride[1] * P::kLeft, sum_panel = count * kTileFloats;
    const bool add = depth.first > 0, ends = depth.first + tiles == tiles_;
    const auto left = [&](int64_t i) {
      return task.lines + i / across * a_.stride[0] * line_bytes(task.width) + i % across * kTileRows * pitch;
    };
    // Rows of the row tiles, one after the other.
    const auto done = [&](int first, int last) {
      for (int row = first, next; row < last; row = next) {
        const int64_t tile = row / kTileRows, x = tile % across * kTileRows;
        const int lane = row % kTileRows;
        next = smaller(last, row - lane + kTileRows);
        const int rows = int(smaller(next - row, task.width - x - lane));
        if (rows > 0)
          finish<T, SumsOf<P>>(epilogue_, task.places + tile / across * task.width + x + lane, rows, p, V,
                               task.sums + tile * kTileFloats + lane * kLanes, sum_panel);
      }
    };
    Beside finishing(done, kFinished);
    for (int64_t i = 0; i < count; i += 2) {
      const char* line = left(i);
      float* sums = task.sums + i * kTileFloats;
      // Any two row tiles have all of their lines equally far apart.
      if (i + 1 < count)
        multiply_tiles<P, 2, V>(line, pitch, left(i + 1) - line, depth, right, panel, tiles, sums,
                                kTileFloats, sum_panel, add, finishing);
      else
        multiply_tiles<P, 1, V>(line, pitch, 0, depth, right, panel, tiles, sums, 0, sum_panel, add,
                                finishing);
      if (ends) finishing.add(int(i) * kTileRows, int(smaller(i + 2, count)) * kTileRows);
    }
    finishing.rest();
  }

  int64_t chunk_;  // depth tiles
};

#endif

}  // namespace aigc::AIGC_ISA
