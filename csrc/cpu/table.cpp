// Chooses the kernel table at run time.
#include "cpu/table.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace aigc {

namespace portable {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace amx {
extern const KernelTable table;
}

namespace {

bool amx_granted() {
  // Linux hands out the tile registers on request (arch_prctl ARCH_REQ_XCOMP_PERM for XTILEDATA = 18).
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kTileBf16Int8 = (1u << 22) | (1u << 24) | (1u << 25);
  if ((edx & kTileBf16Int8) != kTileBf16Int8) return false;
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd");
}

// -march=sapphirerapids lets the compiler use any of these, so all must be there.
bool has_amx() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
         __builtin_cpu_supports("avx512vpopcntdq") && amx_granted();
}

}  // namespace
#endif

const IsaLevel* isa_levels(int* count) {
#if defined(__x86_64__)
  static const IsaLevel levels[] = {
      {"portable", true, true, &portable::table},
      {"avx2", true, has_avx2(), &avx2::table},
      {"avx512", true, has_avx512(), &avx512::table},
      {"amx", true, has_amx(), &amx::table},
  };
#else
  static const IsaLevel levels[] = {
      {"portable", true, true, &portable::table},
      {"avx2", false, false, nullptr},
      {"avx512", false, false, nullptr},
      {"amx", false, false, nullptr},
  };
#endif
  *count = int(sizeof levels / sizeof levels[0]);
  return levels;
}

namespace {

const KernelTable* best_level() {
  int count;
  const IsaLevel* levels = isa_levels(&count);
  const KernelTable* best = levels[0].table;
  for (int i = 1; i < count; ++i)
    if (levels[i].built && levels[i].supported) best = levels[i].table;
  return best;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{best_level()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *chosen().load(std::memory_order_acquire); }

bool force_isa(const char* name) {
  int count;
  const IsaLevel* levels = isa_levels(&count);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(levels[i].name, name) != 0) continue;
    if (!levels[i].built || !levels[i].supported) return false;
    chosen().store(levels[i].table, std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace aigc
