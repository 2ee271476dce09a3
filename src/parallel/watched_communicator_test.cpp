#include "parallel/watched_communicator.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "parallel/solo_communicator.h"

namespace moebius::parallel {
namespace {

constexpr auto kDelay = std::chrono::milliseconds(2);

// Collectives of one rank that end when they are waited for, and not before.
class LateCommunicator final : public Communicator {
 public:
  const std::string& axis() const override { return solo_.axis(); }
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Pending all_reduce(at::Tensor inout, ReduceOp op) override { return late(solo_.all_reduce(inout, op)); }
  Pending all_gather(at::Tensor out, at::Tensor in) override { return late(solo_.all_gather(out, in)); }
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override {
    return late(solo_.reduce_scatter(out, in));
  }
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    return late(solo_.all_to_all(out, in, out_rows, in_rows));
  }
  Pending broadcast(at::Tensor inout, int root) override { return late(solo_.broadcast(inout, root)); }
  Pending send(at::Tensor, int) override { return late({}); }
  Pending receive(at::Tensor, int) override { return late({}); }
  void barrier() override { std::this_thread::sleep_for(kDelay); }
  std::map<std::string, Traffic> traffic() const override { return solo_.traffic(); }

 private:
  class Late final : public Pending::Work {
   public:
    void wait() override {
      std::this_thread::sleep_for(kDelay);
      done_ = true;
    }
    bool is_done() override { return done_; }

   private:
    bool done_ = false;
  };
  static Pending late(Pending pending) {
    pending.wait();
    return Pending(std::make_shared<Late>());
  }

  SoloCommunicator solo_{"late"};
};

double seconds_of(int calls) {
  return std::chrono::duration<double>(kDelay).count() * calls;
}

std::vector<Pending> start_all(Communicator& comm) {
  const at::Tensor a = at::ones({3, 2}), b = at::zeros({3, 2});
  std::vector<Pending> pending;
  pending.push_back(comm.all_reduce(a));
  pending.push_back(comm.all_gather(b, a));
  pending.push_back(comm.reduce_scatter(b, a));
  pending.push_back(comm.all_to_all(b, a, {3}, {3}));
  pending.push_back(comm.broadcast(a, 0));
  pending.push_back(comm.receive(b, 0));
  return pending;
}

TEST(WatchedCommunicator, counts_the_time_in_waits_alone) {
  WatchedCommunicator comm(std::make_unique<LateCommunicator>(), true);
  std::vector<Pending> pending = start_all(comm);
  EXPECT_EQ(comm.waited_s(), 0);
  for (Pending& each : pending) {
    EXPECT_FALSE(each.is_done());
    each.wait();
    EXPECT_TRUE(each.is_done());
  }
  EXPECT_GE(comm.waited_s(), seconds_of(6));
  const double before = comm.waited_s();
  comm.barrier();
  EXPECT_GE(comm.waited_s() - before, seconds_of(1));
  EXPECT_EQ(comm.axis(), "late");
  EXPECT_EQ(comm.traffic().at("all_to_all").calls, 1);
}

TEST(WatchedCommunicator, waits_at_once_without_overlap) {
  WatchedCommunicator comm(std::make_unique<LateCommunicator>(), false);
  for (Pending& each : start_all(comm)) EXPECT_TRUE(each.is_done());
  EXPECT_GE(comm.waited_s(), seconds_of(6));
  EXPECT_FALSE(comm.send(at::ones({2}), 0).is_done());
}

TEST(WatchedCommunicator, gives_the_results_of_the_one_inside) {
  for (const bool overlaps : {false, true}) {
    WatchedCommunicator comm(std::make_unique<LateCommunicator>(), overlaps);
    const at::Tensor in = at::ones({4}), out = at::zeros({4});
    comm.all_gather(out, in).wait();
    EXPECT_TRUE(at::equal(in, out));
  }
}

}  // namespace
}  // namespace moebius::parallel
