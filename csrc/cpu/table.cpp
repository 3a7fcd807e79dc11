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
namespace amx_emulated {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
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

// What CMakeLists.txt lets the compiler use. F16C, LZCNT and MOVBE came with AVX2 or before.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

// AMD's cores make twice as many bfloat16 products as float32 ones in a cycle; Intel's, where a hypervisor
// hides their tiles, half as many.
bool fast_bf16_dots() { return has_avx512_bf16() && __builtin_cpu_is("amd"); }

bool has_amx() { return has_avx512_bf16() && amx_granted(); }

}  // namespace
#endif

const IsaLevel* isa_levels(int* count) {
  // Name, built, supported, automatic, tiles, dots.
#if defined(__x86_64__)
  static const IsaLevel levels[] = {
      {"portable", true, true, true, false, false, &portable::table},
      {"amx_emulated", true, true, false, true, true, &amx_emulated::table},
      {"avx2", true, has_avx2(), true, false, false, &avx2::table},
      {"avx512", true, has_avx512(), true, false, false, &avx512::table},
      {"avx512_bf16", true, has_avx512_bf16(), fast_bf16_dots(), false, true, &avx512_bf16::table},
      {"amx", true, has_amx(), true, true, true, &amx::table},
  };
#else
  static const IsaLevel levels[] = {
      {"portable", true, true, true, false, false, &portable::table},
      {"amx_emulated", true, true, false, true, true, &amx_emulated::table},
      {"avx2", false, false, false, false, false, nullptr},
      {"avx512", false, false, false, false, false, nullptr},
      {"avx512_bf16", false, false, false, false, true, nullptr},
      {"amx", false, false, false, true, true, nullptr},
  };
#endif
  *count = int(sizeof levels / sizeof levels[0]);
  return levels;
}

namespace {

const IsaLevel* best_level() {
  int count;
  const IsaLevel* levels = isa_levels(&count);
  const IsaLevel* best = &levels[0];
  for (int i = 1; i < count; ++i)
    if (levels[i].built && levels[i].supported && levels[i].automatic) best = &levels[i];
  return best;
}

std::atomic<const IsaLevel*>& chosen() {
  static std::atomic<const IsaLevel*> level{best_level()};
  return level;
}

}  // namespace

const IsaLevel& isa_level() { return *chosen().load(std::memory_order_acquire); }

const KernelTable& kernels() { return *isa_level().table; }

bool force_isa(const char* name) {
  int count;
  const IsaLevel* levels = isa_levels(&count);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(levels[i].name, name) != 0) continue;
    if (!levels[i].built || !levels[i].supported) return false;
    chosen().store(&levels[i], std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace aigc
