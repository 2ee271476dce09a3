#include "parallel/stage_link.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace moebius::parallel {
namespace {

// Where the two ends of a connection meet: each waits for the other.
class Meetings {
 public:
  using Way = std::tuple<Axis, int, int>;  // from, to

  bool meet(const Way& way) {
    std::unique_lock lock(mutex_);
    const int meeting = arrived_[way]++ / 2;
    changed_.notify_all();
    const bool met =
        changed_.wait_for(lock, std::chrono::seconds(10), [&] { return arrived_[way] >= 2 * (meeting + 1); });
    if (met) made_.insert(way);
    return met;
  }
  const std::set<Way>& made() const { return made_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Way, int> arrived_;
  std::set<Way> made_;
};

// Only connects, as NCCL does: blocks until the other end has come.
class ConnectingCommunicator final : public Communicator {
 public:
  ConnectingCommunicator(Meetings& meetings, Axis axis, int rank, int size)
      : meetings_(meetings), axis_(axis), name_(name_of(axis)), rank_(rank), size_(size) {}

  const std::string& axis() const override { return name_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void connect(int from, int to) override {
    if (rank_ != from && rank_ != to) return;
    EXPECT_TRUE(meetings_.meet({axis_, from, to})) << name_ << " from " << from << " to " << to;
  }
  Pending all_reduce(at::Tensor /*inout*/, ReduceOp /*op*/) override { return {}; }
  Pending all_gather(at::Tensor /*out*/, at::Tensor /*in*/) override { return {}; }
  Pending reduce_scatter(at::Tensor /*out*/, at::Tensor /*in*/) override { return {}; }
  Pending all_to_all(at::Tensor /*out*/, at::Tensor /*in*/, std::vector<int64_t> /*out_rows*/,
                     std::vector<int64_t> /*in_rows*/) override {
    return {};
  }
  Pending broadcast(at::Tensor /*inout*/, int /*root*/) override { return {}; }
  Pending send(at::Tensor /*in*/, int /*to*/) override { return {}; }
  Pending receive(at::Tensor /*out*/, int /*from*/) override { return {}; }
  void barrier() override {}
  std::map<std::string, Traffic> traffic() const override { return {}; }

 private:
  Meetings& meetings_;
  Axis axis_;
  std::string name_;
  int rank_, size_;
};

// The connections that stages in a row, or in a ring, make.
std::set<Meetings::Way> connections(int stages, bool in_a_ring) {
  Layout::Sizes sizes;
  sizes.pp = stages;
  const Layout layout(sizes);
  Meetings meetings;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < stages; ++rank) {
    ranks.emplace_back([&, rank] {
      const Mesh mesh(layout, rank, [&](Axis axis, const std::vector<int>& all) {
        return std::make_unique<ConnectingCommunicator>(meetings, axis, layout.index(axis, rank),
                                                        static_cast<int>(all.size()));
      });
      connect_stages(mesh, stages, in_a_ring);
    });
  }
  for (std::thread& each : ranks) each.join();
  return meetings.made();
}

TEST(StageLink, neighbours_are_connected_both_ways_and_none_waits_for_ever) {
  for (const int stages : {2, 3, 4}) {
    std::set<Meetings::Way> expected;
    for (int stage = 0; stage + 1 < stages; ++stage) {
      expected.insert({Axis::pp, stage, stage + 1});
      expected.insert({Axis::pp_back, stage + 1, stage});
    }
    EXPECT_EQ(connections(stages, false), expected) << stages;
    if (stages > 2) {
      expected.insert({Axis::pp_back, stages - 1, 0});
      expected.insert({Axis::pp, 0, stages - 1});
    }
    EXPECT_EQ(connections(stages, true), expected) << stages;
  }
}

}  // namespace
}  // namespace moebius::parallel
