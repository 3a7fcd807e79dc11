// Standard normals and uniforms keyed by (seed, stream, element). Compute-bound: some 4 operations a bit of
// output.
#include "cpu/random.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements of one row per work item; a multiple of kNormals

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
      for (int64_t i = first; i < last; i += kNormals) {
        Vec z[4];
        normals(keys, a.stream, uint64_t(i / kNormals), z);
        for (int v = 0; v < 4; ++v) {
          const int64_t left = last - i - v * kLanes;
          if (left >= kLanes) {
            store(out + i + v * kLanes, z[v]);
          } else if (left > 0) {
            store_n(out + i + v * kLanes, z[v], int(left));
          }
        }
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
