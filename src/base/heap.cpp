#include "base/heap.h"

#include <cstdlib>  // defines __GLIBC__

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace moebius {

void keep_freed_memory() {
#if defined(__GLIBC__)
  // Larger blocks than this always come from mmap; it is the most that the library accepts.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

}  // namespace moebius
