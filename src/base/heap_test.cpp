#include "base/heap.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <memory>

namespace moebius {
namespace {

[[maybe_unused]] int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

[[maybe_unused]] void use(size_t bytes) {
  const std::unique_ptr<char[]> block(new char[bytes]);
  std::memset(block.get(), 1, bytes);
  volatile char sink = block[bytes / 2];
  (void)sink;
}

TEST(Heap, reuses_the_pages_of_freed_blocks) {
#if defined(__SANITIZE_ADDRESS__) || !defined(__GLIBC__)
  GTEST_SKIP() << "another heap is in use";
#else
  keep_freed_memory();
  constexpr size_t kBytes = 24 << 20;
  use(kBytes);
  const int64_t before = page_faults();
  for (int i = 0; i < 8; ++i) use(kBytes);
  EXPECT_LT(page_faults() - before, 500) << "fresh pages for blocks that were freed just before";
#endif
}

}  // namespace
}  // namespace moebius
