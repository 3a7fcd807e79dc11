// Solver step on the GPU, over the functors that the CPU loop runs; compiled with --fmad=false, so with its
// bits.
//
// A thread makes four consecutive elements: what one Philox counter gives. Memory-bound: J reads and one
// write per element; neighbouring threads' loads of four share their cache lines.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/launch.h"
#include "math/linear_update.h"
#include "math/philox.h"

namespace aigc {
namespace {

using namespace AIGC_ISA;

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int64_t kMostRowsOfBlocks = 65535;  // CUDA's limit on gridDim.y
constexpr int64_t kMostBlocks = 1 << 16;      // per row; threads stride over the rest

__device__ float widened(float value) { return value; }
__device__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ void put(float* out, float value) { *out = value; }
__device__ void put(__nv_bfloat16* out, float value) { *out = __float2bfloat16_rn(value); }

// The terms of one element. Those with a zero coefficient aren't read: adding 0 * 0 leaves the sum as it is.
template <int J, bool Noisy, class T>
struct Terms {
  const LinearUpdateArgs& args;
  const float* coefficients;
  int64_t row, element;
  float noise;

  AIGC_HD float operator()(int j) const {
#ifdef __CUDA_ARCH__
    if (Noisy && j == J) return noise;
    if (coefficients[j] == 0.0f) return 0.0f;
    return widened(static_cast<const T*>(args.terms[j])[row * args.term_strides[j] + element]);
#else
    return 0.0f;
#endif
  }
};

// Elements 4 block to 4 block + 3 of the stream's normals.
__device__ void four_normals(const PhiloxKeys& keys, uint64_t stream, uint64_t block, float (&z)[kVector]) {
  uint32_t words[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  philox<ScalarLanes>(keys, words);
  box_muller<ScalarLanes>(words[0], words[1], z[0], z[1]);
  box_muller<ScalarLanes>(words[2], words[3], z[2], z[3]);
}

// J is at least the number of terms; the missing ones have zero coefficients.
template <int J, bool Noisy, class T>
__global__ void __launch_bounds__(kThreads) linear_update_kernel(const LinearUpdateArgs args) {
  const int64_t blocks = (args.count + kVector - 1) / kVector, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    float coefficients[J + 1];
    for (int j = 0; j < J; ++j)
      coefficients[j] = j < args.num_terms ? args.coefficients[row * args.num_terms + j] : 0.0f;
    coefficients[J] = Noisy ? args.noise_scale[row] : 0.0f;
    const PhiloxKeys keys(Noisy ? uint64_t(args.seeds[row]) : 0);
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    for (int64_t block = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; block < blocks; block += step) {
      float z[kVector] = {};
      if (Noisy) four_normals(keys, uint64_t(args.streams[row]), uint64_t(block), z);
      for (int v = 0; v < kVector; ++v) {
        const int64_t element = block * kVector + v;
        if (element >= args.count) break;
        const Terms<J, Noisy, T> terms{args, coefficients, row, element, z[v]};
        put(out + element, linear_update_element<J + int(Noisy), float>(coefficients, terms));
      }
    }
  }
}

template <int J, class T>
void launch(const LinearUpdateArgs& args, dim3 grid, cudaStream_t stream) {
  if (args.noise_scale) {
    linear_update_kernel<J, true, T><<<grid, kThreads, 0, stream>>>(args);
  } else {
    linear_update_kernel<J, false, T><<<grid, kThreads, 0, stream>>>(args);
  }
}

template <class T>
void launch(const LinearUpdateArgs& args, dim3 grid, cudaStream_t stream) {
  if (args.num_terms <= 2) return launch<2, T>(args, grid, stream);
  if (args.num_terms <= 4) return launch<4, T>(args, grid, stream);
  return launch<8, T>(args, grid, stream);
}

}  // namespace

const char* linear_update_cuda(const LinearUpdateArgs& args, int device, void* stream) {
  // The runtime in this module is linked statically and keeps its own current device.
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  const int64_t blocks = (args.count + kThreads * kVector - 1) / (kThreads * kVector);
  const dim3 grid(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks),
                  unsigned(args.rows < kMostRowsOfBlocks ? args.rows : kMostRowsOfBlocks));
  if (args.dtype == DType::kFloat32) {
    launch<float>(args, grid, static_cast<cudaStream_t>(stream));
  } else {
    launch<__nv_bfloat16>(args, grid, static_cast<cudaStream_t>(stream));
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace aigc
