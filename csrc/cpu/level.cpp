// One kernel table per ISA level: this file is compiled once for each. AIGC_PLAIN is the level below whose
// plain kernels it shares, where it has none of its own.
#include "cpu/table.h"

#ifndef AIGC_PLAIN
#define AIGC_PLAIN AIGC_ISA
#endif

#define AIGC_DECLARE(name, Args) void name(const Args&);
namespace aigc::AIGC_PLAIN {
AIGC_PLAIN_KERNELS(AIGC_DECLARE)
}
namespace aigc::AIGC_ISA {
AIGC_TILED_KERNELS(AIGC_DECLARE)

#define AIGC_STRING_(x) #x
#define AIGC_STRING(x) AIGC_STRING_(x)
#define AIGC_TILED(name, Args) &name,
#define AIGC_PLAIN_ENTRY(name, Args) &AIGC_PLAIN::name,
extern const KernelTable table;
const KernelTable table = {AIGC_STRING(AIGC_ISA),
                           AIGC_TILED_KERNELS(AIGC_TILED) AIGC_PLAIN_KERNELS(AIGC_PLAIN_ENTRY)};

}  // namespace aigc::AIGC_ISA
