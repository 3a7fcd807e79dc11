// Rows of a table by their indices. Memory-bound: reads and writes each row once; all indices are looked at
// before the first row is written.
#include "cpu/vec.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 65536;  // bytes worth waking a thread for

}  // namespace

void embedding(const EmbeddingArgs& a) {
  *a.refused = -1;
  for (int64_t i = 0; i < a.count; ++i) {
    if (uint64_t(a.indices[i]) < uint64_t(a.rows)) continue;
    *a.refused = i;
    return;
  }
  if (a.row_bytes == 0) return;
  parallel_for(a.count, kGrain / a.row_bytes + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(static_cast<char*>(a.out) + i * a.out_stride,
                  static_cast<const char*>(a.table) + a.indices[i] * a.table_stride, size_t(a.row_bytes));
  });
}

}  // namespace aigc::AIGC_ISA
