// Marks the maths that the CPU loops and the CUDA launchers share.
#pragma once

#ifdef __CUDACC__
#define AIGC_HD __host__ __device__ __forceinline__
#define AIGC_ISA device  // CPU sources are compiled once per ISA level, in a namespace of that name
#else
#define AIGC_HD inline __attribute__((always_inline))
#endif
