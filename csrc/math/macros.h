// Marks the maths that the CPU loops and the CUDA launchers share.
#pragma once

#ifdef __CUDACC__
#define AIGC_HD __host__ __device__ __forceinline__
#else
#define AIGC_HD inline __attribute__((always_inline))
#endif
