#include "runtime/scratch.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "runtime/huge_pages.h"

namespace aigc {
namespace {

constexpr size_t kLine = 64, kHuge = size_t(2) << 20;

struct Kept {
  void* block = nullptr;
  size_t bytes = 0;

  ~Kept() { std::free(block); }
};

thread_local Kept kept;
std::atomic<bool> poisoned{false};

}  // namespace

void* scratch(size_t bytes) {
  if (kept.bytes < bytes) {
    std::free(kept.block);
    kept.block = nullptr, kept.bytes = 0;
    const size_t unit = bytes >= kHuge ? kHuge : kLine;
    const size_t rounded = (bytes + unit - 1) / unit * unit;
    kept.block = std::aligned_alloc(unit, rounded);
    if (!kept.block) throw std::bad_alloc();
    kept.bytes = rounded;
    prefer_huge_pages(kept.block, rounded);
  }
  if (poisoned.load(std::memory_order_relaxed)) std::memset(kept.block, 0xff, kept.bytes);
  return kept.block;
}

void release_scratch() {
  if (kept.bytes <= kScratchKept) return;
  std::free(kept.block);
  kept.block = nullptr, kept.bytes = 0;
}

void poison_scratch(bool on) { poisoned.store(on); }

const Caches& caches() {
  static const Caches found = [] {
    Caches sizes{size_t(32) << 10, size_t(1) << 20};
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (l1 > 0) sizes.l1 = size_t(l1);
    if (l2 > 0) sizes.l2 = size_t(l2);
#endif
    return sizes;
  }();
  return found;
}

}  // namespace aigc
