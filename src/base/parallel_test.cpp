#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace moebius {
namespace {

class Parallel : public ::testing::Test {
 protected:
  Parallel() : before_(num_threads()) { set_num_threads(3); }
  ~Parallel() override { set_num_threads(before_); }
  int before_;
};

TEST_F(Parallel, ranges_cover_every_index_once) {
  for (const int64_t extent : {0, 1, 2, 7, 100}) {
    for (const int64_t grain : {1, 3, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(extent));
      parallel_for(0, extent, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& count : seen) EXPECT_EQ(count, 1);
    }
  }
}

TEST_F(Parallel, tasks_run_once_each_also_when_nested) {
  std::vector<std::atomic<int>> seen(50);
  parallel_tasks(5, [&](int64_t task, int64_t) {
    parallel_for(0, 10, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(task * 10 + i)];
    });
  });
  for (const auto& count : seen) EXPECT_EQ(count, 1);
}

TEST_F(Parallel, an_exception_reaches_the_caller) {
  const auto fail = [](int64_t, int64_t) { throw std::runtime_error("inside"); };
  EXPECT_THROW(parallel_for(0, 100, 1, fail), std::runtime_error);
  EXPECT_THROW(parallel_tasks(100, fail), std::runtime_error);
}

}  // namespace
}  // namespace moebius
