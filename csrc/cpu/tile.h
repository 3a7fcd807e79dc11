// Tiles: the shape in which matrix products take their operands, on every ISA level.
//
// A tile is up to 16 rows of 64 bytes. Of the left operand a row is one of its own: 16 float32, 32 bfloat16
// or 64 int8 of the depth. Of the right operand, packed once, a row holds 4 bytes of depth of each of 16
// columns (one float32, a pair of bfloat16, four int8), so 16 of them reach as deep. The result's tile is 16
// x 16 of 4 bytes. AMX computes on these as they are; vector levels broadcast 4 bytes of a left row against a
// right row, which is one cache line. So packed weights fit every level.
//
// Tile registers: 0 to 3 accumulate, 4 and 5 hold the left operand, 6 and 7 the right one. Where the level is
// built without AMX but with AIGC_EMULATE_TILES, plain C++ stands in, so that the loops around can be tested
// on any machine.
#pragma once

#include <cstdlib>

#include "cpu/vec.h"

namespace aigc::AIGC_ISA {

constexpr int kTileRows = 16;
constexpr int kTileLine = 64;
constexpr int kTileBytes = kTileRows * kTileLine;
constexpr int kTileFloats = kTileBytes / 4;

// Tile registers of full size for as long as it lives, for products that are Tiled.
template <bool Tiled>
struct TileSession {
  TileSession() {}
};

#if defined(__AMX_TILE__)

constexpr bool kHasTiles = true;

template <>
struct TileSession<true> {
  TileSession() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t line_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.line_bytes[i] = kTileLine, config.rows[i] = kTileRows;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileSession() { asm volatile("tilerelease"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

template <int D>
AIGC_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(D));
}

template <int D>
AIGC_INLINE void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(D) : "memory");
}

template <int S>
AIGC_INLINE void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(S) : "memory");
}

// D += A B, bfloat16 products summed in float32.
template <int D, int A, int B>
AIGC_INLINE void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(D), "i"(A), "i"(B));
}

// D += A B, int8 products summed in int32.
template <int D, int A, int B>
AIGC_INLINE void tile_dot_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(D), "i"(A), "i"(B));
}

#elif defined(AIGC_EMULATE_TILES)

constexpr bool kHasTiles = true;

struct EmulatedTile {
  char bytes[kTileBytes];
};
inline thread_local EmulatedTile emulated_tiles[8];  // one set for all sources of the level
inline thread_local bool emulated_session = false;

template <>
struct TileSession<true> {
  TileSession() { emulated_session = true; }
  ~TileSession() { emulated_session = false; }
};

// Tiles that aren't configured are an illegal instruction.
AIGC_INLINE void demand_session() {
  if (!emulated_session) std::abort();
}

template <int D>
AIGC_INLINE void tile_zero() {
  demand_session();
  std::memset(emulated_tiles[D].bytes, 0, kTileBytes);
}

template <int D>
AIGC_INLINE void tile_load(const void* p, int64_t stride) {
  demand_session();
  for (int row = 0; row < kTileRows; ++row)
    std::memcpy(emulated_tiles[D].bytes + row * kTileLine, static_cast<const char*>(p) + row * stride,
                kTileLine);
}

template <int S>
AIGC_INLINE void tile_store(void* p, int64_t stride) {
  demand_session();
  for (int row = 0; row < kTileRows; ++row)
    std::memcpy(static_cast<char*>(p) + row * stride, emulated_tiles[S].bytes + row * kTileLine, kTileLine);
}

// As the instruction has it: even and odd products are summed apart, then added to the accumulator. But the
// instruction takes and leaves numbers below 2^-126 as zeros, whatever MXCSR says.
template <int D, int A, int B>
inline void tile_dot_bf16() {
  uint16_t a[kTileRows][32], b[kTileRows][32];
  float d[kTileRows][16];
  std::memcpy(a, emulated_tiles[A].bytes, kTileBytes);
  std::memcpy(b, emulated_tiles[B].bytes, kTileBytes);
  std::memcpy(d, emulated_tiles[D].bytes, kTileBytes);
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < 16; ++column) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < 16; ++k) {
        even += to_float(a[row][2 * k]) * to_float(b[k][2 * column]);
        odd += to_float(a[row][2 * k + 1]) * to_float(b[k][2 * column + 1]);
      }
      d[row][column] += even + odd;
    }
  }
  std::memcpy(emulated_tiles[D].bytes, d, kTileBytes);
}

template <int D, int A, int B>
inline void tile_dot_int8() {
  int8_t a[kTileRows][64], b[kTileRows][64];
  int32_t d[kTileRows][16];
  std::memcpy(a, emulated_tiles[A].bytes, kTileBytes);
  std::memcpy(b, emulated_tiles[B].bytes, kTileBytes);
  std::memcpy(d, emulated_tiles[D].bytes, kTileBytes);
  for (int row = 0; row < kTileRows; ++row)
    for (int column = 0; column < 16; ++column)
      for (int k = 0; k < 64; ++k) d[row][column] += a[row][k] * b[k / 4][4 * column + k % 4];
  std::memcpy(emulated_tiles[D].bytes, d, kTileBytes);
}

#else

constexpr bool kHasTiles = false;

// Never called: lets products name their dot on every level.
template <int D, int A, int B>
void tile_dot_bf16();
template <int D, int A, int B>
void tile_dot_int8();

#endif

}  // namespace aigc::AIGC_ISA
