// One kernel table per ISA level: this file is compiled once for each.
#include "cpu/table.h"

namespace aigc::AIGC_ISA {

#define AIGC_DECLARE(name, Args) void name(const Args&);
AIGC_CPU_KERNELS(AIGC_DECLARE)
#undef AIGC_DECLARE

#define AIGC_STRING_(x) #x
#define AIGC_STRING(x) AIGC_STRING_(x)
#define AIGC_ENTRY(name, Args) &name,
extern const KernelTable table;
const KernelTable table = {AIGC_STRING(AIGC_ISA), AIGC_CPU_KERNELS(AIGC_ENTRY)};

}  // namespace aigc::AIGC_ISA
