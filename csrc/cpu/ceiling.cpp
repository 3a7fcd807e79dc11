// Loops as fast as the machine allows, for benchmarks to be held against: arithmetic that stays in registers,
// and reads whose values nobody uses.
#include <algorithm>
#include <iterator>

#include "cpu/tile.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

// Independent sums, in registers: more than latency times ports (FMA: 4 x 2; dot products: 6 x 1 on Sapphire
// Rapids), and with two operands they fit the sixteen registers of the lesser levels.
constexpr int kSums = 12;
constexpr int kShares = 4;  // of each thread: a core slowed by a neighbour does fewer

// The compiler must have the value in a register here, and takes it for changed.
template <class Register>
AIGC_INLINE void keep(Register& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

// sums = step(sums, a, b) over and over. They begin apart, or they'd be one sum.
template <class Register, class Operand, class Step>
AIGC_INLINE void run_sums(int64_t rounds, Register (&sums)[kSums], Operand a, Operand b, const Step& step) {
  keep(a), keep(b);
  for (auto& sum : sums) keep(sum);
  for (int64_t round = 0; round < rounds; ++round)
    for (auto& sum : sums) sum = step(sum, a, b);
  for (auto& sum : sums) keep(sum);
}

struct Fma {
  static constexpr double kOperations = kSums * 2.0 * (kRegisterBytes / 4);
  static void run(int64_t rounds) {
    using Part = Vec::Part;
    Part sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = Part{} + float(i);
    run_sums(rounds, sums, Part{} + 0.5f, Part{} + 1.0f,
             [](Part sum, Part a, Part b) __attribute__((always_inline)) {
#if defined(__FMA__)
               return Part(AIGC_WIDE(fmadd_ps)(sum, a, b));
#elif defined(__aarch64__)
               return Part(vfmaq_f32(b, sum, a));
#else
               return sum * a + b;
#endif
             });
  }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
  static constexpr double kOperations = kSums * 2.0 * 32;
  static void run(int64_t rounds) {
    __m512 sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(float(i));
    run_sums(rounds, sums, _mm512_set1_epi32(0x3f803f80),
             _mm512_set1_epi32(0x3f003f00),  // (1, 1), (1/2, 1/2)
             [](__m512 sum, __m512i a, __m512i b)
                 __attribute__((always_inline)) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); });
  }
};
#endif

#if defined(__AVX512VNNI__)
struct DotInt8 {
  static constexpr double kOperations = kSums * 2.0 * 64;
  static void run(int64_t rounds) {
    __m512i sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_epi32(i);
    run_sums(rounds, sums, _mm512_set1_epi8(1), _mm512_set1_epi8(-1),
             [](__m512i sum, __m512i a, __m512i b)
                 __attribute__((always_inline)) { return _mm512_dpbusd_epi32(sum, a, b); });
  }
};
#endif

#if defined(__AMX_TILE__)
// Two tiles by two, as a matrix product has them.
template <class Dots>
AIGC_INLINE void run_tiles(int64_t rounds, uint16_t fill, const Dots& dots) {
  alignas(kTileLine) uint16_t operand[kTileBytes / 2];
  std::fill(std::begin(operand), std::end(operand), fill);
  const TileSession<true> session;
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_load<4>(operand, kTileLine), tile_load<5>(operand, kTileLine);
  tile_load<6>(operand, kTileLine), tile_load<7>(operand, kTileLine);
  for (int64_t round = 0; round < rounds; ++round) dots();
}

struct TileBf16 {
  static constexpr double kOperations = 4 * 2.0 * 16 * 16 * 32;
  static void run(int64_t rounds) {
    run_tiles(rounds, 0x3f80, []() __attribute__((always_inline)) {
      tile_dot_bf16<0, 4, 6>(), tile_dot_bf16<1, 4, 7>(), tile_dot_bf16<2, 5, 6>(), tile_dot_bf16<3, 5, 7>();
    });
  }
};

struct TileInt8 {
  static constexpr double kOperations = 4 * 2.0 * 16 * 16 * 64;
  static void run(int64_t rounds) {
    run_tiles(rounds, 0x0101, []() __attribute__((always_inline)) {
      tile_dot_int8<0, 4, 6>(), tile_dot_int8<1, 4, 7>(), tile_dot_int8<2, 5, 6>(), tile_dot_int8<3, 5, 7>();
    });
  }
};
#endif

template <class Loop>
double compute(const CeilingArgs& a) {
  const int64_t shares = int64_t(a.threads) * kShares;
  parallel_for(shares, 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) Loop::run(a.rounds);
  });
  return Loop::kOperations * double(a.rounds) * double(shares);
}

void read_lines(const char* p, int64_t lines) {
#pragma GCC unroll 8
  for (int64_t line = 0; line < lines; ++line) {
    Vec v = load_bits<Vec>(p + line * kTileLine);
    for (auto& part : v.part) keep(part);
  }
}

// Each thread reads its own part again and again; a single pass is cut finer.
double read(const CeilingArgs& a) {
  const int64_t lines = a.bytes / kTileLine, parts = int64_t(a.threads) * (a.rounds == 1 ? kShares : 1);
  parallel_for(parts, 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = lines * part / parts, last = lines * (part + 1) / parts;
      for (int64_t round = 0; round < a.rounds; ++round)
        read_lines(static_cast<const char*>(a.data) + first * kTileLine, last - first);
    }
  });
  return double(lines) * kTileLine * double(a.rounds);
}

double run(const CeilingArgs& a) {
  switch (a.loop) {
    case CeilingLoop::kRead:
      return read(a);
    case CeilingLoop::kFma:
      return compute<Fma>(a);
#if defined(__AVX512BF16__)
    case CeilingLoop::kDotBf16:
      return compute<DotBf16>(a);
#endif
#if defined(__AVX512VNNI__)
    case CeilingLoop::kDotInt8:
      return compute<DotInt8>(a);
#endif
#if defined(__AMX_TILE__)
    case CeilingLoop::kTileBf16:
      return compute<TileBf16>(a);
    case CeilingLoop::kTileInt8:
      return compute<TileInt8>(a);
#endif
    default:
      return 0.0;
  }
}

}  // namespace

void ceiling(const CeilingArgs& a) { *a.done = run(a); }

}  // namespace aigc::AIGC_ISA
