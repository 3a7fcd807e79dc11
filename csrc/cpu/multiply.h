// Blocks of tiles times panels.
//
// Left operand, packed for the block: [row tile][depth tile][rows of the tile][P::kLeft]. Right operand,
// packed once: panels of 16 columns, [panel][depth tile][P::kRight]. Sums: 4 bytes, float32 or int32 by the
// product, 16 of a panel beside each other.
//
// Napkin maths. Vector levels: 8 x 2 accumulators (AVX-512) read 2 lines and 8 broadcasts for 16 operations.
// Tile levels: 2 x 2 tiles read 4 KiB (at best 32 cycles from L1) for 4 dots of 16 cycles each, so one of the
// two operands must come from L1: the pair of panels stays there while the row tiles pass by.
#pragma once

#include "cpu/product.h"

namespace aigc::AIGC_ISA {

constexpr int kPanels = 2;  // computed together; also what a gated activation pairs

// Accumulators: R rows (then the smaller steps for what is left) of two panels.
#if defined(__AVX512F__)
constexpr int kRowSteps[] = {8, 4, 2, 1};
#elif defined(__AVX2__)
constexpr int kRowSteps[] = {3, 2, 1};
#elif defined(__aarch64__)
constexpr int kRowSteps[] = {2, 1};
#else
constexpr int kRowSteps[] = {1};
#endif

// Sums in stretches of depth tiles, each from zero, so that float32's error grows with the number of
// stretches and not of products; chunks of depth end between stretches, so cutting changes nothing. Ahead:
// lines aren't packed beside each other, so the next R rows' are called for meanwhile.
template <class P, int R, int V, bool Ahead = false>
AIGC_INLINE void multiply_rows(const char* left, int64_t pitch, int64_t left_tile, const char* right,
                               int64_t panel, int64_t tiles, int zeros, float* sums, int64_t sum_panel,
                               bool add, int64_t stretch = P::kStretch) {
  using Sum = typename P::Sum;
  for (int64_t begin = 0; begin < tiles; begin += stretch, add = true) {
    Sum acc[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = Sum(splat(0.0f));
    const int64_t end = tiles - begin < stretch ? tiles : begin + stretch;
    const int64_t whole = zeros && end == tiles ? end - 1 : end;
    for (int64_t t = begin; t < whole; ++t) {
      const char* line = left + t * left_tile;
      if constexpr (Ahead)
        for (int r = 0; r < R; ++r) __builtin_prefetch(line + (R + r) * pitch);
#pragma GCC unroll 4
      for (int k = 0; k < kTileRows; ++k)
        P::template step<R, V>(acc, line, pitch, right + t * P::kRight, panel, k);
    }
    if (whole < end)
#pragma GCC unroll 4
      for (int k = 0; k < kTileRows - zeros; ++k)
        P::template step<R, V>(acc, left + whole * left_tile, pitch, right + whole * P::kRight, panel, k);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        float* sum = sums + v * sum_panel + r * kLanes;
        store_bits(sum, add ? load_bits<Sum>(sum) + acc[r][v] : acc[r][v]);
      }
  }
}

constexpr int kMostRows = kRowSteps[0];

// multiply_rows for any number of rows up to R, whose lines lie apart.
template <class P, int V, int R = kMostRows, class... Rest>
AIGC_INLINE void multiply_few(int rows, Rest... rest) {
  if (rows == R) return multiply_rows<P, R, V, true>(rest...);
  if constexpr (R > 1) multiply_few<P, V, R - 1>(rows, rest...);
}

// Rows [row, rows) of one row tile, in steps of kRowSteps[S] and smaller.
template <class P, int V, bool Ahead, size_t S = 0>
AIGC_INLINE void multiply_steps(int row, int rows, const char* left, int64_t pitch, int64_t left_tile,
                                const char* right, int64_t panel, int64_t tiles, int zeros, float* sums,
                                int64_t sum_panel, bool add) {
  constexpr int R = kRowSteps[S];
  for (; row + R <= rows; row += R)
    multiply_rows<P, R, V, Ahead>(left + row * pitch, pitch, left_tile, right, panel, tiles, zeros,
                                  sums + row * kLanes, sum_panel, add);
  if constexpr (R > 1)
    if (row < rows)
      multiply_steps<P, V, Ahead, S + 1>(row, rows, left, pitch, left_tile, right, panel, tiles, zeros, sums,
                                         sum_panel, add);
}

// Work for the vector units while tiles multiply: run(first, last) does items [first, last), `portion` of
// them after each depth tile. A core looks some 500 instructions ahead: work that followed in one piece would
// keep it from the next dots.
template <class F>
class Beside {
 public:
  Beside(const F& work, int items) : run(work), portion(items) {}

  AIGC_MEMBER void step() {
    if (first < last) advance(last - first < portion ? last : first + portion);
  }
  AIGC_MEMBER void rest() {
    if (first < last) advance(last);
  }
  // After what there was before.
  AIGC_MEMBER void add(int begin, int end) {
    rest();
    first = begin, last = end;
  }

 private:
  AIGC_MEMBER void advance(int end) {
    run(first, end);
    first = end;
  }

  const F& run;
  const int portion;
  int first = 0, last = 0;
};

struct Idle {
  AIGC_MEMBER void step() {}
};

#if defined(__AMX_TILE__) || defined(AIGC_EMULATE_TILES)

// Depth tiles one after the other.
struct EvenDepth {
  int64_t bytes;

  AIGC_MEMBER int64_t operator()(int64_t t) const { return t * bytes; }
};

// R row tiles, `row_tile` bytes apart, by V panels. Lines are `pitch` bytes apart, those of depth tile t
// depth(t) bytes from `left` on. Lines past a tile's rows hold whatever follows: they give rows that nobody
// reads. `work` goes on beside the dots.
template <class P, int R, int V, class Depth, class Work>
AIGC_INLINE void multiply_tiles(const char* left, int64_t pitch, int64_t row_tile, const Depth& depth,
                                const char* right, int64_t panel, int64_t tiles, float* sums,
                                int64_t sum_row_tile, int64_t sum_panel, bool add, Work& work) {
  if (add) {
    tile_load<0>(sums, kTileLine);
    if constexpr (V > 1) tile_load<1>(sums + sum_panel, kTileLine);
    if constexpr (R > 1) tile_load<2>(sums + sum_row_tile, kTileLine);
    if constexpr (R > 1 && V > 1) tile_load<3>(sums + sum_row_tile + sum_panel, kTileLine);
  } else {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  }
  for (int64_t t = 0; t < tiles; ++t) {
    const char *a = left + depth(t), *b = right + t * P::kRight;
    for (const Part& part : P::kParts) {
      if (!part.same_left) tile_load<4>(a + part.left, pitch);
      tile_load<6>(b + part.right, kTileLine);
      P::template dot<0, 4, 6>();
      if constexpr (V > 1) tile_load<7>(b + panel + part.right, kTileLine);
      if constexpr (V > 1) P::template dot<1, 4, 7>();
      if constexpr (R > 1)
        if (!part.same_left) tile_load<5>(a + row_tile + part.left, pitch);
      if constexpr (R > 1) P::template dot<2, 5, 6>();
      if constexpr (R > 1 && V > 1) P::template dot<3, 5, 7>();
    }
    work.step();
  }
  tile_store<0>(sums, kTileLine);
  if constexpr (V > 1) tile_store<1>(sums + sum_panel, kTileLine);
  if constexpr (R > 1) tile_store<2>(sums + sum_row_tile, kTileLine);
  if constexpr (R > 1 && V > 1) tile_store<3>(sums + sum_row_tile + sum_panel, kTileLine);
}

#endif

// A block of the left operand, as packed or in place (vector levels), times panels.
struct Block {
  const char* left;
  int rows;             // in all
  int64_t left_tiles;   // depth tiles between one row tile and the next
  int64_t left_offset;  // depth tiles before the first
  int64_t pitch;        // in place: bytes between rows, else 0
  const char* right;
  int64_t panel;  // bytes between panels
  int64_t tiles;  // depth tiles to go
  int zeros;      // 4-byte steps at the end of the last one that are zeros; vector levels leave them out
  float* sums;
  int64_t sum_row_tile, sum_panel;  // floats between row tiles, between panels
  bool add;                         // to what is in `sums`
};

// Multiplies V <= kPanels panels; done(first row, rows) is told of each stretch of finished row tiles, and
// `work` goes on beside tiles' dots.
template <class P, int V, class Work, class Done>
AIGC_INLINE void multiply(const Block& b, [[maybe_unused]] Work& work, const Done& done) {
  for (int row = 0; row < b.rows; row += kTileRows) {
    const int rows = b.rows - row < kTileRows ? b.rows - row : kTileRows;
    const char* left = b.left + (row * b.left_tiles + rows * b.left_offset) * P::kLeft;
    float* sums = b.sums + row / kTileRows * b.sum_row_tile;
    if constexpr (P::kTiles) {
#if defined(__AMX_TILE__) || defined(AIGC_EMULATE_TILES)
      if (b.rows - row >= 2 * kTileRows) {
        multiply_tiles<P, 2, V>(left, P::kLeft, kTileRows * b.left_tiles * P::kLeft,
                                EvenDepth{kTileRows * P::kLeft}, b.right, b.panel, b.tiles, sums,
                                b.sum_row_tile, b.sum_panel, b.add, work);
        done(row, 2 * kTileRows);
        row += kTileRows;
        continue;
      }
      multiply_tiles<P, 1, V>(left, P::kLeft, 0, EvenDepth{rows * P::kLeft}, b.right, b.panel, b.tiles, sums,
                              0, b.sum_panel, b.add, work);
#endif
    } else {
      if (b.pitch)
        multiply_steps<P, V, true>(0, rows, b.left + row * b.pitch + b.left_offset * P::kLeft, b.pitch,
                                   P::kLeft, b.right, b.panel, b.tiles, b.zeros, sums, b.sum_panel, b.add);
      else
        multiply_steps<P, V, false>(0, rows, left, P::kLeft, rows * P::kLeft, b.right, b.panel, b.tiles,
                                    b.zeros, sums, b.sum_panel, b.add);
    }
    done(row, rows);
  }
}

}  // namespace aigc::AIGC_ISA
