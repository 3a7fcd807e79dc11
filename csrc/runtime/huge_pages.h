// Large pages for memory that the kernel is about to hand out.
#pragma once

#include <cstddef>

namespace aigc {

// Asks for 2 MiB pages in the whole ones of [address, address + bytes). A no-op where the system has none.
void prefer_huge_pages(void* address, size_t bytes);

}  // namespace aigc
