#include "telemetry/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::telemetry {
namespace {

class Trace : public ::testing::Test {
 protected:
  ~Trace() override { stop_trace(); }

  nlohmann::json written() {
    stop_trace();
    write_trace(folder_ / "trace.json");
    return nlohmann::json::parse(read_file(folder_ / "trace.json"));
  }
  static nlohmann::json find(const nlohmann::json& trace, const std::string& name) {
    for (const auto& event : trace["traceEvents"]) {
      if (event["name"] == name) return event;
    }
    return nullptr;
  }
  static int64_t count(const nlohmann::json& trace, const std::string& phase) {
    const auto& events = trace["traceEvents"];
    return std::count_if(events.begin(), events.end(),
                         [&](const auto& event) { return event["ph"] == phase; });
  }
  TestFolder folder_;
};

TEST_F(Trace, spans_nest_in_time_and_carry_their_fields) {
  FixedClock clock;
  clock.advance(100);
  start_trace(1000, clock);
  {
    Span outer("step", "train");
    clock.advance(0.5);
    {
      Span inner("layer", "model", 3);
      clock.advance(0.25);
    }
    trace_counter("tokens", 2048);
  }
  const auto trace = written();
  const auto outer = find(trace, "step"), inner = find(trace, "layer"), counter = find(trace, "tokens");
  EXPECT_EQ(outer["ph"], "X");
  EXPECT_EQ(outer["ts"], 0);
  EXPECT_EQ(outer["dur"], 750000);
  EXPECT_EQ(outer["cat"], "train");
  EXPECT_FALSE(outer.contains("args"));
  EXPECT_EQ(inner["ts"], 500000);
  EXPECT_EQ(inner["dur"], 250000);
  EXPECT_EQ(inner["args"]["index"], 3);
  EXPECT_EQ(counter["ph"], "C");
  EXPECT_EQ(counter["args"]["value"], 2048);
  EXPECT_EQ(inner["tid"], outer["tid"]);
}

TEST_F(Trace, exchanges_overlap_and_processes_share_a_file) {
  FixedClock clock;
  start_trace(1000, clock);
  Exchange first("send", "pp"), second("all_reduce", "dp");
  clock.advance(0.5);
  first.end();
  clock.advance(0.25);
  second.end();
  second.end();
  stop_trace();
  write_trace(folder_ / "trace.json", {trace_text(0, "rank 0"), trace_text(1, "rank 1")});
  const auto trace = nlohmann::json::parse(read_file(folder_ / "trace.json"));
  EXPECT_EQ(count(trace, "b"), 4);
  EXPECT_EQ(count(trace, "e"), 4);
  std::set<int> processes;
  for (const auto& event : trace["traceEvents"]) {
    processes.insert(event["pid"].get<int>());
    if (event["ph"] != "e") continue;
    EXPECT_EQ(event["ts"], event["cat"] == "pp" ? 500000 : 750000);
  }
  EXPECT_EQ(processes, (std::set<int>{0, 1}));
}

TEST_F(Trace, nothing_is_recorded_while_off_or_across_traces) {
  { Span before("before"); }
  auto* across = new Span("across-off");
  start_trace();
  delete across;
  auto* open = new Span("open");
  stop_trace();
  start_trace();
  delete open;
  { Span kept("kept"); }
  const auto trace = written();
  { Span after("after"); }
  EXPECT_EQ(count(trace, "X"), 1);
  EXPECT_FALSE(find(trace, "kept").is_null());
}

TEST_F(Trace, threads_have_tracks_with_names_that_outlive_them) {
  start_trace();
  { Span span("here"); }
  std::thread([] {
    name_this_thread("loader \"1\"");
    Span span("there");
  }).join();
  const auto trace = written();
  EXPECT_NE(find(trace, "here")["tid"], find(trace, "there")["tid"]);
  const auto tid = find(trace, "there")["tid"];
  bool named = false;
  for (const auto& event : trace["traceEvents"]) {
    named = named || (event["ph"] == "M" && event["tid"] == tid && event["args"]["name"] == "loader \"1\"");
  }
  EXPECT_TRUE(named);
}

TEST_F(Trace, memory_is_bounded_and_the_loss_is_counted) {
  start_trace(10);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 20; ++i) Span span("x");
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(num_dropped_trace_events(), 50);
  const auto trace = written();
  EXPECT_EQ(count(trace, "X"), 10);
  EXPECT_EQ(trace["otherData"]["dropped_events"], 50);
}

}  // namespace
}  // namespace moebius::telemetry
