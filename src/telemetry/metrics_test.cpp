#include "telemetry/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/check.h"
#include "base/test_folder.h"

namespace moebius::telemetry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Metrics, one_name_and_labels_is_one_metric) {
  Registry registry;
  registry.counter("a_total", "A.").add(2);
  registry.counter("a_total", "A.").add();
  registry.gauge("load", "L.", {{"expert", "1"}}).set(5);
  registry.gauge("load", "L.", {{"expert", "0"}}).set(-4);
  const auto families = registry.collect();
  ASSERT_EQ(families.size(), 2u);
  EXPECT_EQ(families[0].name, "a_total");
  EXPECT_EQ(families[0].samples[0].value, 3);
  ASSERT_EQ(families[1].samples.size(), 2u);
  EXPECT_EQ(families[1].samples[0].labels[0].second, "0");
  EXPECT_EQ(families[1].samples[0].value, -4);
}

TEST(Metrics, a_gauge_that_was_never_set_is_absent) {
  Registry registry;
  Gauge& gauge = registry.gauge("later", "L.");
  EXPECT_TRUE(registry.collect().empty());
  gauge.set(0);
  EXPECT_EQ(registry.collect().size(), 1u);
}

TEST(Metrics, histogram_bounds_are_inclusive_and_the_rest_is_kept) {
  Histogram histogram({1, 2, 4});
  for (const double x : {0.5, 1.0, 1.5, 4.0, 9.0}) histogram.observe(x);
  const auto snapshot = histogram.snapshot();
  EXPECT_THAT(snapshot.counts, ElementsAre(2u, 1u, 1u, 1u));
  EXPECT_EQ(snapshot.count, 5u);
  EXPECT_EQ(snapshot.sum, 16.0);
  EXPECT_THAT(exponential_bounds(1, 2, 3), ElementsAre(1, 2, 4));
}

TEST(Metrics, threads_lose_nothing) {
  Registry registry;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        registry.counter("n_total", "N.").add();
        registry.histogram("h", "H.", {0.5}).observe(1);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(registry.counter("n_total", "N.").value(), 20000);
  EXPECT_EQ(registry.histogram("h", "H.", {0.5}).snapshot().counts[1], 20000u);
}

TEST(Metrics, misuse_is_a_bug) {
  Registry registry;
  registry.gauge("a", "A.");
  const auto message = [](const auto& body) { return message_of<InternalError>(body); };
  EXPECT_THAT(message([&] { registry.histogram("a", "A.", {1}); }), HasSubstr("'a' is used with two kinds"));
  EXPECT_THAT(message([&] { registry.gauge("1x", "."); }), HasSubstr("'1x' is no metric name"));
  EXPECT_THAT(message([&] { registry.counter("count", "."); }), HasSubstr("end in _total: count"));
  EXPECT_THAT(message([&] { registry.gauge("b", ".", {{"l-l", ""}}); }), HasSubstr("'l-l' is no label name"));
  EXPECT_THAT(message([&] { registry.counter("c_total", ".").add(-1); }), HasSubstr("only grows"));
  EXPECT_THAT(message([&] { Histogram({2, 1}); }), HasSubstr("bounds must ascend"));
}

}  // namespace
}  // namespace moebius::telemetry
