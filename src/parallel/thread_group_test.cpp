// The group of threads stands in for processes in the tests of this module, so it is held to the contract of
// Communicator itself.
#include "parallel/thread_group.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include "parallel/solo_communicator.h"

namespace moebius::parallel {
namespace {

at::Tensor floats(std::vector<float> values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<float>());
  return tensor;
}

TEST(ThreadGroupTest, collectives_do_what_they_say) {
  ThreadGroup group(3);
  group.run([](Communicator& comm) {
    const auto rank = static_cast<float>(comm.rank());
    at::Tensor sum = floats({rank, 1});
    comm.all_reduce(sum).wait();
    EXPECT_TRUE(sum.equal(floats({3, 3})));
    at::Tensor most = floats({rank, -rank});
    comm.all_reduce(most, ReduceOp::max).wait();
    EXPECT_TRUE(most.equal(floats({2, 0})));
    at::Tensor gathered = at::empty({3, 2}, at::kFloat);
    comm.all_gather(gathered, floats({rank, rank + 10})).wait();
    EXPECT_TRUE(gathered.view({-1}).equal(floats({0, 10, 1, 11, 2, 12})));
    at::Tensor part = at::empty({2}, at::kFloat);
    comm.reduce_scatter(part, at::arange(6, at::kFloat) * (rank + 1)).wait();
    EXPECT_TRUE(part.equal(floats({12 * rank, 12 * rank + 6})));
    at::Tensor told = at::full({2}, rank);
    comm.broadcast(told, 1).wait();
    EXPECT_TRUE(told.equal(floats({1, 1})));
    comm.send(floats({rank}), (comm.rank() + 1) % 3).wait();
    at::Tensor from_left = at::empty({1}, at::kFloat);
    comm.receive(from_left, (comm.rank() + 2) % 3).wait();
    EXPECT_EQ(from_left.item<float>(), static_cast<float>((comm.rank() + 2) % 3));
  });
}

// Rank r sends r + t rows, each (r, t), to rank t.
TEST(ThreadGroupTest, rows_reach_the_ranks_that_they_are_for) {
  ThreadGroup group(3);
  group.run([](Communicator& comm) {
    std::vector<int64_t> in_rows, out_rows;
    std::vector<float> in, expected;
    for (int other = 0; other < 3; ++other) {
      in_rows.push_back(comm.rank() + other);
      out_rows.push_back(other + comm.rank());
      for (int row = 0; row < comm.rank() + other; ++row) {
        in.insert(in.end(), {static_cast<float>(comm.rank()), static_cast<float>(other)});
        expected.insert(expected.end(), {static_cast<float>(other), static_cast<float>(comm.rank())});
      }
    }
    at::Tensor out = at::empty({static_cast<int64_t>(expected.size()) / 2, 2}, at::kFloat);
    comm.all_to_all(out, floats(in).view({-1, 2}), out_rows, in_rows).wait();
    EXPECT_TRUE(out.view({-1}).equal(floats(expected)));
    const int64_t to_others = comm.rank() == 0 ? 3 : comm.rank() == 1 ? 4 : 5;
    EXPECT_EQ(comm.traffic()["all_to_all"].sent_bytes, to_others * 8);
  });
}

TEST(ThreadGroupTest, counts_what_a_ring_sends) {
  ThreadGroup group(4);
  group.run([](Communicator& comm) {
    at::Tensor tensor = at::full({8}, 1.0F), part = at::full({2}, 1.0F);
    comm.all_reduce(tensor).wait();
    comm.reduce_scatter(part, tensor).wait();
    comm.all_gather(tensor, part).wait();
    EXPECT_EQ(comm.traffic()["all_reduce"].sent_bytes, 2 * 32 * 3 / 4);
    EXPECT_EQ(comm.traffic()["reduce_scatter"].sent_bytes, 32 * 3 / 4);
    EXPECT_EQ(comm.traffic()["all_gather"].sent_bytes, 32 * 3 / 4);
  });
}

TEST(ThreadGroupTest, an_error_of_one_rank_releases_the_others) {
  ThreadGroup group(2);
  EXPECT_THROW(group.run([](Communicator& comm) {
    if (comm.rank() == 1) throw std::invalid_argument("no");
    try {
      comm.barrier();
    } catch (const CommunicationFailed&) {
      throw std::invalid_argument("released");
    }
  }),
               std::invalid_argument);
}

TEST(SoloCommunicatorTest, gives_back_what_it_gets) {
  SoloCommunicator solo("dp");
  at::Tensor tensor = floats({1, 2}), out = at::empty({2}, at::kFloat);
  solo.all_reduce(tensor, ReduceOp::sum).wait();
  solo.all_gather(out, tensor).wait();
  EXPECT_TRUE(out.equal(floats({1, 2})));
  solo.all_to_all(out, floats({3, 4}), {2}, {2}).wait();
  EXPECT_TRUE(out.equal(floats({3, 4})));
  EXPECT_EQ(solo.traffic()["all_reduce"].sent_bytes, 0);
}

}  // namespace
}  // namespace moebius::parallel
