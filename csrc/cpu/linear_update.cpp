// Solver step: out[b] = sum_j c[b, j] x_j[b] + s[b] z. Memory-bound without noise: J reads and one write per
// element. The noise costs some 65 vector operations per sixteen elements; a block of it is made in the L1
// cache and read back as one more term.
#include "math/linear_update.h"

#include "cpu/random.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements of one row per work item; a multiple of kNoiseBlock
// Results from this size on don't fit the caches along with a term.
constexpr int64_t kStreamBytes = int64_t(1) << 25;

// The terms of one row that count.
template <class T>
struct Row {
  const T* terms[LinearUpdateArgs::kMaxTerms];
  float coefficients[LinearUpdateArgs::kMaxTerms + 1];  // the noise's last
  int used;
  T* out;
  bool streamed;  // past the caches: the result is larger than they are, and isn't read on the way
};

template <class T>
Row<T> row_of(const LinearUpdateArgs& a, int64_t b, bool streamed) {
  Row<T> row;
  row.used = 0;
  row.streamed = streamed;
  row.out = static_cast<T*>(a.out) + b * a.out_stride;
  for (int j = 0; j < a.num_terms; ++j) {
    const float c = a.coefficients[b * a.num_terms + j];
    if (c == 0.0f) continue;
    row.terms[row.used] = static_cast<const T*>(a.terms[j]) + b * a.term_strides[j];
    row.coefficients[row.used++] = c;
  }
  return row;
}

// For whole, aligned cache lines; elsewhere an ordinary store.
AIGC_INLINE void store_past_caches(float* p, Vec v) {
#ifdef AIGC_WIDE
  if (reinterpret_cast<uintptr_t>(p) % sizeof v == 0) {
    constexpr int kFloats = kRegisterBytes / 4;
    for (int i = 0; i < kParts; ++i) AIGC_WIDE(stream_ps)(p + i * kFloats, v.part[i]);
    return;
  }
#endif
  store(p, v);
}
AIGC_INLINE void store_past_caches(uint16_t* p, Vec v) { store(p, v); }

// Stores past the caches aren't ordered by the releases that follow them.
AIGC_INLINE void finish_stores() {
#ifdef AIGC_WIDE
  _mm_sfence();
#endif
}

// One bit set in any lane.
AIGC_INLINE bool any(UVec v) {
  uint32_t lanes[kLanes], bits = 0;
  std::memcpy(lanes, v.part, sizeof lanes);
  for (uint32_t lane : lanes) bits |= lane;
  return bits != 0;
}

// Elements [first, last) of a row with J terms, the last of which is `noise` when Noisy. Says whether all are
// finite: v - v has no bit set then, and is NaN otherwise.
//
// The row comes by value: through a reference the compiler would reload it after every store.
template <int J, bool Noisy, class T>
bool run(const Row<T> row, const float* noise, int64_t first, int64_t last) {
  UVec flaws{};
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) {
    const Vec v = linear_update_element<J, Vec>(row.coefficients, [&](int j) {
      return Noisy && j == J - 1 ? load(noise + (i - first)) : load(row.terms[j] + i);
    });
    row.streamed ? store_past_caches(row.out + i, v) : store(row.out + i, v);
    flaws = flaws | UVec(v - v);
  }
  if (i < last) {
    const int n = int(last - i);
    const Vec v = linear_update_element<J, Vec>(row.coefficients, [&](int j) {
      return Noisy && j == J - 1 ? load_n(noise + (i - first), n) : load_n(row.terms[j] + i, n);
    });
    store_n(row.out + i, v, n);
    flaws = flaws | UVec(v - v);
  }
  return !any(flaws);
}

template <bool Noisy, class T>
bool run(const Row<T>& row, const float* noise, int64_t first, int64_t last) {
  switch (row.used + int(Noisy)) {
    case 0:
      return run<0, false>(row, noise, first, last);
    case 1:
      return run<1, Noisy>(row, noise, first, last);
    case 2:
      return run<2, Noisy>(row, noise, first, last);
    case 3:
      return run<3, Noisy>(row, noise, first, last);
    case 4:
      return run<4, Noisy>(row, noise, first, last);
    case 5:
      return run<5, Noisy>(row, noise, first, last);
    case 6:
      return run<6, Noisy>(row, noise, first, last);
    case 7:
      return run<7, Noisy>(row, noise, first, last);
    case 8:
      return run<8, Noisy>(row, noise, first, last);
    default:
      return run<9, true>(row, noise, first, last);
  }
}

template <class T>
bool run_noisy(Row<T>& row, const LinearUpdateArgs& a, int64_t b, int64_t first, int64_t last) {
  row.coefficients[row.used] = a.noise_scale[b];
  const PhiloxKeys keys(uint64_t(a.seeds[b]));
  bool finite = true;
  for (int64_t i = first; i < last; i += kNoiseBlock) {
    alignas(64) float noise[kNoiseBlock];
    const int64_t end = i + kNoiseBlock < last ? i + kNoiseBlock : last;
    normals(keys, uint64_t(a.streams[b]), i, end - i, noise);
    finite &= run<true>(row, noise, i, end);
  }
  return finite;
}

template <class T>
void run_item(const LinearUpdateArgs& a, int64_t b, int64_t first, int64_t last, bool streamed) {
  Row<T> row = row_of<T>(a, b, streamed);
  const bool noisy = a.noise_scale && a.noise_scale[b] != 0.0f;
  const bool finite = noisy ? run_noisy(row, a, b, first, last) : run<false>(row, nullptr, first, last);
  if (streamed) finish_stores();
  if (a.not_finite && !finite) __atomic_store_n(a.not_finite + b, uint8_t(1), __ATOMIC_RELAXED);
}

bool is_streamed(const LinearUpdateArgs& a) {
  if (a.rows * a.count * 4 < kStreamBytes) return false;
  for (int j = 0; j < a.num_terms; ++j)
    if (a.terms[j] == a.out) return false;
  return true;
}

}  // namespace

void linear_update(const LinearUpdateArgs& a) {
  if (a.count == 0) return;
  const int64_t blocks = (a.count + kBlock - 1) / kBlock;
  const bool streamed = is_streamed(a);
  const int64_t worth = a.noise_scale ? a.kNoiseGrain : a.kGrain, size = a.count < kBlock ? a.count : kBlock;
  parallel_for(a.rows * blocks, (worth + size - 1) / size, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, first = item % blocks * kBlock;
      const int64_t last = first + kBlock < a.count ? first + kBlock : a.count;
      if (a.dtype == DType::kFloat32) {
        run_item<float>(a, b, first, last, streamed);
      } else {
        run_item<uint16_t>(a, b, first, last, streamed);
      }
    }
  });
}

}  // namespace aigc::AIGC_ISA
