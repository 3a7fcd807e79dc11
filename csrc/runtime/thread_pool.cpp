#include "runtime/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace aigc {

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

namespace {

constexpr int kMaxWorkers = 255;
// A denoising step comes back within some 20 us, so a worker that spins that long is there when it does;
// longer would take a core from PyTorch's own threads.
constexpr auto kSpin = std::chrono::microseconds(20);
// More chunks than threads, so that a core slowed by a neighbour gets fewer of them.
constexpr int64_t kChunksPerThread = 4;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  void run(int64_t count, int64_t chunks, int threads, ChunkBody body, const void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return body(context, 0, count);
    const int helpers = grow(threads - 1);
    if (helpers == 0) return body(context, 0, count);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body, context_ = context, count_ = count, chunks_ = chunks;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = helpers;
      running_.store(helpers, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain();
    while (running_.load(std::memory_order_acquire) > 0) pause();
  }

  int workers() const { return workers_.load(); }

 private:
  // Threads are made when first wanted and never more than asked for.
  int grow(int helpers) {
    helpers = std::min(helpers, kMaxWorkers);
    for (int id = workers_.load(); id < helpers; ++id) {
      std::thread([this, id, seen = generation_.load()] { work(id, seen); }).detach();
      workers_.fetch_add(1);
    }
    return helpers;
  }

  void drain() {
    for (;;) {
      const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= chunks_) return;
      body_(context_, count_ * i / chunks_, count_ * (i + 1) / chunks_);
    }
  }

  void work(int id, uint64_t seen) {
    for (;;) {
      if (id >= await(&seen)) continue;  // this job asked for fewer threads
      drain();
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Waits for a new job and returns how many workers it wants. An unwanted worker may wake late, while the next
  // job is set up: generation and count are read under the lock so that they belong to one job.
  int await(uint64_t* seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (generation_.load(std::memory_order_acquire) == *seen) {
      if (std::chrono::steady_clock::now() < deadline) {
        pause();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != *seen; });
    }
    std::lock_guard<std::mutex> lock(mutex_);
    *seen = generation_.load(std::memory_order_acquire);
    return wanted_;
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0}, workers_{0};
  int wanted_ = 0;
  ChunkBody body_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0, chunks_ = 0;
};

// Never destroyed: workers may outlive static destructors, and a forked child leaves its parent's pool behind.
std::atomic<Pool*> pool_pointer{nullptr};

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool_pointer.store(nullptr); });
  (void)registered;
  Pool* current = pool_pointer.load(std::memory_order_acquire);
  if (current) return *current;
  Pool* fresh = new Pool;
  if (pool_pointer.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, ChunkBody body, const void* context) {
  if (count <= 0) return;
  const int64_t most = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  const int64_t used = std::min<int64_t>(threads, most);
  if (used <= 1) return body(context, 0, count);
  pool().run(count, std::min(most, used * kChunksPerThread), int(used), body, context);
}

int pool_workers() {
  Pool* current = pool_pointer.load();
  return current ? current->workers() : 0;
}

}  // namespace aigc
