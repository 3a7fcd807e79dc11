// The engine's threads: PyTorch's OpenMP workers where that runtime is loaded, else a pool of its own that
// spins briefly, then parks. Safe after fork; callable from many threads at once.
#pragma once

#include <cstdint>

namespace aigc {

using ChunkBody = void (*)(const void* context, int64_t begin, int64_t end);

// Runs body over [0, count) in contiguous chunks on up to `threads` threads (the caller's among them) and
// returns when all are done. `grain` is the least number of items worth a thread. A second caller finding the
// pool busy runs its own work inline. A kernel's result must not depend on where chunks are cut.
void parallel_for(int64_t count, int64_t grain, int threads, ChunkBody body, const void* context);

template <class F>
inline void parallel_for(int64_t count, int64_t grain, int threads, const F& f) {
  parallel_for(
      count, grain, threads,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); },
      &f);
}

// The entry points GOMP_parallel and omp_get_thread_num of the runtime that PyTorch uses, which isn't global
// everywhere. Before the first call of `parallel_for`.
void use_openmp(uintptr_t parallel, uintptr_t thread_number);

// CPUs this process may run on (its affinity mask).
int available_cpus();

// Worker threads alive in this process.
int pool_workers();

}  // namespace aigc
