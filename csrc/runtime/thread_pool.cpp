#include "runtime/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
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

using Clock = std::chrono::steady_clock;

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

// Spins, then yields: the thread that is waited for may need this core.
class Backoff {
 public:
  void wait() {
    if (++turns_ < 1000) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }

 private:
  int turns_ = 0;
};

// One job at a time. What is left of it stands in one word, so that taking a chunk, joining and noticing that
// the job is over can't disagree: a worker that wakes late finds nothing to take, and nobody waits for it.
struct Ticket {
  uint64_t job;     // 32 bits, counts up
  uint64_t places;  // 16 bits: workers that may still join
  uint64_t chunks;  // 16 bits: not yet taken

  static Ticket of(uint64_t word) { return {word >> 32, (word >> 16) & 0xFFFF, word & 0xFFFF}; }
  uint64_t word() const { return (job & 0xFFFFFFFF) << 32 | places << 16 | chunks; }
};

class Pool {
 public:
  void run(int64_t count, int64_t chunks, int threads, ChunkBody body, const void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return body(context, 0, count);
    const int helpers = grow(threads - 1);
    body_ = body, context_ = context, count_ = count, chunks_ = chunks;
    left_.store(chunks, std::memory_order_relaxed);
    const Ticket last = Ticket::of(ticket_.load(std::memory_order_relaxed));
    const uint64_t job = (last.job + 1) & 0xFFFFFFFF;
    // Sequentially consistent with await(): either this sees the sleeper or the sleeper sees the job.
    ticket_.store(Ticket{job, uint64_t(helpers), uint64_t(chunks)}.word());
    wake(std::min(helpers, sleepers_.load()));
    work_on(job);
    for (Backoff backoff; left_.load(std::memory_order_acquire) > 0;) backoff.wait();
    busy_.store(false, std::memory_order_release);
  }

  int workers() const { return workers_.load(std::memory_order_relaxed); }

 private:
  // Threads are made when first wanted and never more than asked for. Returns how many helpers there are.
  int grow(int helpers) {
    helpers = std::min(helpers, kMaxWorkers);
    int made = workers_.load(std::memory_order_relaxed);
    if (made >= helpers) return helpers;
    // Signals are for the application's threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; made < helpers; ++made) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The process may have no more threads: the job runs on those there are.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    workers_.store(made, std::memory_order_relaxed);
    return std::min(made, helpers);
  }

  void wake(int helpers) {
    if (helpers == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a sleeper is either before its check or inside its wait
    for (int i = 0; i < helpers; ++i) awake_.notify_one();
  }

  void work_on(uint64_t job) {
    uint64_t word = ticket_.load(std::memory_order_acquire);
    for (;;) {
      Ticket ticket = Ticket::of(word);
      if (ticket.job != job || ticket.chunks == 0) return;
      --ticket.chunks;
      if (!ticket_.compare_exchange_weak(word, ticket.word(), std::memory_order_acq_rel)) continue;
      // The job can't end before this chunk is done, so its fields stand still until then.
      const int64_t i = chunks_ - 1 - int64_t(ticket.chunks);
      body_(context_, count_ * i / chunks_, count_ * (i + 1) / chunks_);
      left_.fetch_sub(1, std::memory_order_release);
      word = ticket_.load(std::memory_order_acquire);
    }
  }

  static bool open(uint64_t word) {
    const Ticket ticket = Ticket::of(word);
    return ticket.places > 0 && ticket.chunks > 0;
  }

  void serve() {
    for (;;) {
      uint64_t word = await();
      Ticket ticket = Ticket::of(word);
      --ticket.places;
      if (ticket_.compare_exchange_strong(word, ticket.word(), std::memory_order_acq_rel))
        work_on(ticket.job);
    }
  }

  // Spins, then sleeps until a job has a place.
  uint64_t await() {
    for (const auto deadline = Clock::now() + kSpin; Clock::now() < deadline; pause()) {
      const uint64_t word = ticket_.load(std::memory_order_acquire);
      if (open(word)) return word;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    uint64_t word;
    awake_.wait(lock, [&] { return open(word = ticket_.load()); });
    sleepers_.fetch_sub(1);
    return word;
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> left_{0};  // chunks not yet done
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<int> workers_{0}, sleepers_{0};
  std::mutex mutex_;
  std::condition_variable awake_;
  ChunkBody body_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0, chunks_ = 0;
};

// Never destroyed: workers may outlive static destructors, and a forked child leaves its parent's pool
// behind.
std::atomic<Pool*> pool_pointer{nullptr};
std::atomic<bool> forked{false};

// From load on, not from first use: the parent's OpenMP runtime may have been started by PyTorch alone.
const int watching_forks = pthread_atfork(nullptr, nullptr, [] {
  pool_pointer.store(nullptr);
  forked.store(true);
});

Pool& pool() {
  Pool* current = pool_pointer.load(std::memory_order_acquire);
  if (current) return *current;
  Pool* fresh = new Pool;
  if (pool_pointer.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

// PyTorch's OpenMP workers spin for milliseconds after each of its ops, on the very cores that ours would
// need: group_norm between two of them took 3.3 ms on two threads where 1.6 were its own. So where that
// runtime is loaded (libgomp, or another with its entry point) its workers, who are awake, run our chunks. A
// forked child can't use it and makes a pool of its own.
using OpenMP = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

using ThreadNumber = int (*)();

// What is global, until `use_openmp` knows better.
struct Runtime {
  std::atomic<OpenMP> parallel{reinterpret_cast<OpenMP>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))};
  std::atomic<ThreadNumber> thread_number{
      reinterpret_cast<ThreadNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"))};
};

Runtime& runtime() {
  static Runtime found;
  return found;
}

OpenMP openmp() {
  return forked.load(std::memory_order_relaxed) ? nullptr
                                                : runtime().parallel.load(std::memory_order_relaxed);
}

std::atomic<bool> team_busy{false};

// Thread t begins with the t-th share of the chunks, call after call, so that what one call left in a core's
// caches the next finds there; then it helps the others.
struct Team {
  ChunkBody body;
  const void* context;
  int64_t count, chunks, threads;
  std::atomic<int64_t>* taken;  // of each thread's share

  static void work(void* data) {
    const Team& team = *static_cast<Team*>(data);
    const int64_t own = runtime().thread_number.load(std::memory_order_relaxed)();
    for (int64_t i = 0; i < team.threads; ++i) team.work_on_share((own + i) % team.threads);
  }

 private:
  void work_on_share(int64_t share) const {
    const int64_t first = chunks * share / threads, last = chunks * (share + 1) / threads;
    for (;;) {
      const int64_t i = first + taken[share].fetch_add(1, std::memory_order_relaxed);
      if (i >= last) return;
      body(context, count * i / chunks, count * (i + 1) / chunks);
    }
  }
};

}  // namespace

void use_openmp(uintptr_t parallel, uintptr_t thread_number) {
  runtime().parallel.store(reinterpret_cast<OpenMP>(parallel));
  runtime().thread_number.store(reinterpret_cast<ThreadNumber>(thread_number));
}

void parallel_for(int64_t count, int64_t grain, int threads, ChunkBody body, const void* context) {
  if (count <= 0) return;
  const int64_t most = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  const int64_t used = std::min<int64_t>({threads, most, kMaxWorkers + 1});
  if (used <= 1) return body(context, 0, count);
  const int64_t chunks = std::min(most, used * kChunksPerThread);
  const OpenMP run = openmp();
  if (!run) return pool().run(count, chunks, int(used), body, context);
  if (team_busy.exchange(true, std::memory_order_acquire)) return body(context, 0, count);
  std::atomic<int64_t> taken[kMaxWorkers + 1];
  for (int64_t i = 0; i < used; ++i) taken[i].store(0, std::memory_order_relaxed);
  Team team{body, context, count, chunks, used, taken};
  run(&Team::work, &team, unsigned(used), 0);
  team_busy.store(false, std::memory_order_release);
}

int pool_workers() {
  Pool* current = pool_pointer.load();
  return current ? current->workers() : 0;
}

}  // namespace aigc
