// The loops around a product of many rows with a packed weight, for linear layers and convolutions alike.
//
// A task is a block of rows times a range of panels. Its left operand is packed into tiles (so strides,
// padding, conversion and the splitting of float32 cost one pass, and every tile load is contiguous); a pair
// of panels over a chunk of depth stays in L1 while the block's row tiles pass by; sums of several chunks
// wait in L2. How work is cut changes no bit: every sum takes its products in order of depth.
#pragma once

#include "cpu/epilogue.h"
#include "cpu/multiply.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {

struct Blocking {
  int64_t rows;    // of a task
  int64_t panels;  // of a task, even
  int64_t tiles;   // depth tiles of a chunk
  bool whole;      // the block's left operand is packed once, over its whole depth
  int64_t pitch;   // bytes between rows of a left operand that is read in place, else 0
};

struct GemmShape {
  int64_t rows, tiles, panels;  // tiles: of depth
};

// Bytes of scratch beside each other: left operand, sums, places.
template <class P>
struct ScratchPlan {
  int64_t left, sums, places;

  ScratchPlan(const GemmShape& s, const Blocking& b) {
    // Tile loads of a short last row tile read past it.
    left = b.pitch ? 0
                   : round_up(b.rows * (b.whole ? s.tiles : b.tiles) * P::kLeft + kTileRows * P::kLeft,
                              kTileLine);
    sums = round_up(b.rows, kTileRows) * (b.tiles < s.tiles ? b.panels : kPanels) * kLanes * 4;
    places = b.rows * int64_t(sizeof(RowPlace));
  }

  int64_t bytes() const { return left + sums + places; }
};

// Estimated cycles of a whole product on `threads` threads. Per row tile, panel and depth tile: 16 cycles a
// dot on tiles, 256 or more vector operations otherwise; packing 16 lines some 48, quantising them 192; a
// right tile comes at 32 bytes a cycle from L2, where the whole weight may stay, and at 8 from beyond.
template <class P>
inline double estimate(const GemmShape& s, const Blocking& b, int threads) {
  const int64_t row_blocks = blocks_of(s.rows, b.rows), ranges = blocks_of(s.panels, b.panels);
  const double row_tiles = double(b.rows) / kTileRows, panels = double(b.panels), tiles = double(s.tiles);
  double product = 256.0 * P::kLeft / kTileLine;
  if constexpr (P::kTiles) product = 16.0 * (sizeof P::kParts / sizeof(Part));
  // A lone row tile has but two accumulators, each of which takes the next dot 52 cycles after the last.
  const double lone = P::kTiles && b.rows / kTileRows % 2 ? 10.0 / 16.0 : 0.0;
  const bool stays = size_t(s.panels * s.tiles * P::kRight) <= caches().l2 / 2;
  const double packing = b.pitch ? 0.0 : P::kScaled ? 192.0 : 48.0;
  const double task = (row_tiles + lone) * panels * tiles * product + row_tiles * tiles * packing +
                      panels * tiles * P::kRight / (stays ? 32.0 : 8.0);
  const int64_t tasks = row_blocks * ranges;
  return double(blocks_of(tasks, threads)) * task;
}

template <class P>
inline Blocking choose_blocking(const GemmShape& s, int64_t pitch, int threads) {
  constexpr int kRowTiles[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
  constexpr int kRanges[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
  // Tiles need their panels in L1; vector levels lose more by adding up further chunks than by L2's distance.
  const int64_t room = int64_t(caches().l1) / (P::kTiles ? 2 : 1);
  // Tiles add product by product, others in stretches.
  const int64_t stretch = P::kTiles ? 1 : P::kStretch;
  const int64_t stretches = room / (kPanels * P::kRight) / stretch;
  // A single row tile reads no panel twice.
  const int64_t most = s.rows <= kTileRows ? s.tiles : (stretches < 1 ? 1 : stretches) * stretch;
  const int64_t tiles = round_up(even_block(s.tiles, most), stretch);
  Blocking best{};
  double least = 0.0;
  for (int row_tiles : kRowTiles) {
    const int64_t rows = smaller(int64_t(row_tiles) * kTileRows, round_up(s.rows, kTileRows));
    for (int ranges : kRanges) {
      const int64_t panels = round_up(blocks_of(s.panels, ranges), kPanels);
      const bool whole = size_t(rows * s.tiles * P::kLeft) <= caches().l2 / 2;
      const Blocking b{rows, panels, tiles, whole, pitch};
      const bool fits = size_t(ScratchPlan<P>(s, b).bytes()) <= caches().l2 / 4 * 3;
      if (!fits && best.rows) continue;
      const double cycles = estimate<P>(s, b, threads);
      if (best.rows && cycles >= least) continue;
      best = b, least = cycles;
    }
  }
  return best;
}

constexpr int kFinished = 4;  // rows at a time, beside dots

// Whether rows of a source can be read in place: on vector levels, where lines are elements as they are.
template <class P, class T, class Source>
constexpr bool kInPlace = Source::kRows && !P::kTiles && kPlainLines<P, T>;

// Rows of `source` (see pack_left; source.place(row) says where a row's result goes) times panels of `right`.
template <class P, class T, class Source>
struct Gemm {
  const Source& source;
  const char* right;
  GemmShape shape;
  Blocking blocking;
  const EpilogueArgs& epilogue;

  int64_t panel_bytes() const { return shape.tiles * P::kRight; }

  void run(int threads) const {
    const int64_t row_blocks = blocks_of(shape.rows, blocking.rows);
    const int64_t ranges = blocks_of(shape.panels, blocking.panels);
    parallel_for(row_blocks * ranges, 1, threads, [&](int64_t begin, int64_t end) {
      const ScratchPlan<P> plan(shape, blocking);
      Task task{};
      task.left = static_cast<char*>(scratch(size_t(plan.bytes())));
      task.sums = reinterpret_cast<float*>(task.left + plan.left);
      task.places = reinterpret_cast<RowPlace*>(task.left + plan.left + plan.sums);
      {
        const TileSession<P::kTiles> session;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t first = item / ranges * blocking.rows;
          if (item == begin || first != task.first) enter(task, first);
          multiply_range(task, item % ranges * blocking.panels);
        }
      }
      release_scratch();
    });
  }

 private:
  struct Task {
    char* left;
    float* sums;
    RowPlace* places;
    int64_t first;
    int rows;
  };

  void enter(Task& task, int64_t first) const {
    task.first = first;
    task.rows = int(smaller(blocking.rows, shape.rows - first));
    for (int r = 0; r < task.rows; ++r) {
      task.places[r] = source.place(first + r);
      if constexpr (P::kScaled) task.places[r].scale = row_scale(source, first + r);
    }
    if (blocking.whole && !blocking.pitch)
      pack_left<P>(source, first, task.rows, 0, shape.tiles, task.places, task.left);
  }

  void multiply_range(const Task& task, int64_t panel) const {
    const int64_t last = smaller(panel + blocking.panels, shape.panels);
    for (int64_t tile = 0; tile < shape.tiles; tile += blocking.tiles) {
      const int64_t tiles = smaller(blocking.tiles, shape.tiles - tile);
      if (!blocking.whole && !blocking.pitch)
        pack_left<P>(source, task.first, task.rows, tile, tiles, task.places, task.left);
      for (int64_t p = panel; p < last; p += kPanels) {
        p + 1 < last ? multiply_panels<2>(task, p, panel, tile, tiles)
                     : multiply_panels<1>(task, p, panel, tile, tiles);
      }
    }
  }

  template <int V>
  void multiply_panels(const Task& task, int64_t p, int64_t panel, int64_t tile, int64_t tiles) const {
    const bool chunked = blocking.tiles < shape.tiles, ends = tile + tiles == shape.tiles;
    const int64_t row_tiles = blocks_of(task.rows, kTileRows);
    // A gated pair: panel p / 2 of the first half of the columns and of the second.
    const bool gated = epilogue.gating != Gating::kNone;
    Block b{};
    b.left = task.left, b.rows = task.rows, b.tiles = tiles;
    b.panel = gated ? shape.panels / 2 * panel_bytes() : panel_bytes();
    b.left_tiles = blocking.whole ? shape.tiles : tiles;
    b.left_offset = blocking.whole || blocking.pitch ? tile : 0;
    if constexpr (kInPlace<P, T, Source>)
      if ((b.pitch = blocking.pitch)) b.left = source.line(task.first);
    b.right = right + (gated ? p / 2 : p) * panel_bytes() + tile * P::kRight;
    b.sum_row_tile = kTileFloats, b.sum_panel = row_tiles * kTileFloats;
    b.sums = task.sums + (chunked ? (p - panel) * b.sum_panel : 0), b.add = tile > 0;
    const auto done = [&](int row, int last) __attribute__((always_inline)) {
      if (ends)
        finish<T, SumsOf<P>>(epilogue, task.places + row, last - row, p, V, b.sums + row * kLanes,
                             b.sum_panel);
    };
    // Of tiles, each block's sums are finished beside the next one's dots.
    Beside finishing(done, kFinished);
    multiply<P, V>(b, finishing, [&](int row, int rows) __attribute__((always_inline)) {
      P::kTiles ? finishing.add(row, row + rows) : done(row, row + rows);
    });
    finishing.rest();
  }
};

template <class P, class T, class Source>
inline void gemm(const Source& source, const void* right, int64_t rows, int64_t panels,
                 const EpilogueArgs& epilogue, int threads) {
  const GemmShape shape{rows, blocks_of(source.depth, P::kDepth), panels};
  int64_t pitch = 0;
  if constexpr (kInPlace<P, T, Source>)
    if (source.depth % P::kDepth == 0) pitch = source.pitch();
  // At such a pitch rows would share sets of L1.
  if (pitch % (int64_t(caches().l1) / 16) == 0) pitch = 0;
  const Blocking blocking = choose_blocking<P>(shape, pitch, threads);
  Gemm<P, T, Source>{source, static_cast<const char*>(right), shape, blocking, epilogue}.run(threads);
}

// Panels that hold the epilogue's columns.
AIGC_INLINE int64_t panels_of(const EpilogueArgs& e) {
  const int64_t panels = blocks_of(e.columns, kLanes);
  return e.gating == Gating::kNone ? panels : 2 * panels;
}

// Calls f(product tag, element of x and of the result) for the kinds that a packed weight and its input
// allow.
template <class F>
inline void with_product(Product product, DType dtype, const F& f) {
  if (product == Product::kFloat32) return f(Float32Product{}, float{});
  if (product == Product::kSplit) return f(SplitProduct{}, float{});
  dtype == DType::kFloat32 ? f(BFloat16Product{}, float{}) : f(BFloat16Product{}, uint16_t{});
}

// The same, int8 included.
template <class F>
inline void with_any_product(Product product, DType dtype, const F& f) {
  if (product != Product::kInt8) return with_product(product, dtype, f);
  dtype == DType::kFloat32 ? f(Int8Product{}, float{}) : f(Int8Product{}, uint16_t{});
}

}  // namespace aigc::AIGC_ISA
