// Standard normals and uniforms keyed by (seed, stream, element). Compute-bound: some 4 operations a bit of
// output.
#include "cpu/random.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements of one row per work item; a multiple of kNoiseBlock

template <class T>
void run(const PhiloxNormalArgs& a) {
  if (a.count == 0) return;
  const int64_t blocks = (a.count + kBlock - 1) / kBlock;
  const int64_t grain = a.count < kBlock ? kBlock / a.count : 1;
  parallel_for(a.rows * blocks, grain, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / blocks, first = item % blocks * kBlock;
      const int64_t last = first + kBlock < a.count ? first + kBlock : a.count;
      const PhiloxKeys keys(uint64_t(a.seeds[row]));
      T* out = static_cast<T*>(a.out) + row * a.count;
      for (int64_t i = first; i < last; i += kNoiseBlock) {
        alignas(64) float z[kNoiseBlock];
        const int64_t n = last - i < kNoiseBlock ? last - i : kNoiseBlock;
        normals(keys, a.stream, i, n, z);
        int64_t k = 0;
        for (; k + kLanes <= n; k += kLanes) store(out + i + k, load(z + k));
        if (k < n) store_n(out + i + k, load(z + k), int(n - k));
      }
    }
  });
}

}  // namespace

void philox_normal(const PhiloxNormalArgs& a) {
  if (a.dtype == DType::kFloat32) {
    run<float>(a);
  } else {
    run<uint16_t>(a);
  }
}

void philox_uniform(const PhiloxUniformArgs& a) {
  for (int64_t row = 0; row < a.rows; ++row) {
    uint32_t counter[4] = {0, 0, uint32_t(a.stream), uint32_t(a.stream >> 32)};
    philox<ScalarLanes>(PhiloxKeys(uint64_t(a.seeds[row])), counter);
    a.out[row] = uniform<ScalarLanes>(counter[0]);
  }
}

}  // namespace aigc::AIGC_ISA
