// out[i] = weight[indices[i]]: rows copied as they are. Memory-bound: each row read and written once.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/args.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int64_t kGrain = 65536;  // bytes worth waking a thread for

// On the caller's thread and before anything is written: an exception can't leave the others.
template <class Index>
void check(const EmbeddingArgs& a, const Index* indices) {
  for (int64_t i = 0; i < a.count; ++i)
    if (indices[i] < 0 || indices[i] >= a.rows)
      throw std::out_of_range("embedding: indices has " + std::to_string(indices[i]) + ", expected 0 to " +
                              std::to_string(a.rows - 1) +
                              ", the rows of weight; look at where they come from");
}

template <class Index>
void run(const EmbeddingArgs& a) {
  const Index* indices = static_cast<const Index*>(a.indices);
  check(a, indices);
  const char* weight = static_cast<const char*>(a.weight);
  char* out = static_cast<char*>(a.out);
  parallel_for(a.count, kGrain / a.row_bytes + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(out + i * a.row_bytes, weight + indices[i] * a.row_pitch, size_t(a.row_bytes));
  });
}

}  // namespace

void embedding(const EmbeddingArgs& a) {
  if (a.count * a.row_bytes == 0) return;
  if (a.wide) {
    run<int64_t>(a);
  } else {
    run<int32_t>(a);
  }
}

}  // namespace aigc::AIGC_ISA
