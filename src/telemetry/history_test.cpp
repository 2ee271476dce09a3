#include "telemetry/history.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace moebius::telemetry {
namespace {

TEST(History, keeps_numbers_and_says_where_there_were_none) {
  Registry registry;
  registry.gauge("loss", "").set(2);
  History history(registry);
  history.sample(10);
  history.sample(10.5);  // too soon
  registry.counter("work_total", "", {{"kind", "a"}}).add(3);
  registry.gauge("loss", "").set(1.5);
  history.sample(11);
  const auto json = nlohmann::json::parse(history.json());
  EXPECT_EQ(json["times"], (std::vector<double>{10, 11}));
  EXPECT_EQ(json["series"]["loss"], (std::vector<double>{2, 1.5}));
  EXPECT_EQ(json["series"]["work_total{kind=\"a\"}"][0], nullptr);
  EXPECT_EQ(json["series"]["work_total{kind=\"a\"}"][1], 3);
}

TEST(History, spans_the_whole_run_in_bounded_space) {
  Registry registry;
  Gauge& step = registry.gauge("step", "");
  History history(registry, 1, 64);
  for (int second = 0; second < 10000; ++second) {
    step.set(second);
    history.sample(second);
  }
  const auto json = nlohmann::json::parse(history.json());
  const auto times = json["times"].get<std::vector<double>>();
  EXPECT_LE(times.size(), 64u);
  EXPECT_GE(times.size(), 32u);
  EXPECT_LT(times.front(), 600);
  EXPECT_GT(times.back(), 9600);
  EXPECT_EQ(json["series"]["step"].get<std::vector<double>>(), times);
}

TEST(History, leaves_out_families_of_many_and_histograms) {
  Registry registry;
  for (int i = 0; i < 9; ++i) registry.gauge("load", "", {{"expert", std::to_string(i)}}).set(1);
  registry.histogram("seconds", "", {1, 2}).observe(1);
  registry.gauge("nan", "").set(0.0 / 0.0);
  History history(registry);
  history.sample(1);
  const auto json = nlohmann::json::parse(history.json());
  EXPECT_EQ(json["series"].size(), 1u);
  EXPECT_EQ(json["series"]["nan"][0], nullptr);
}

}  // namespace
}  // namespace moebius::telemetry
