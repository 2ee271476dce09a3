// The communicator over Gloo among threads of this process, each with sockets of its own on loopback.
#include "parallel/c10d_communicator.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "parallel/mesh.h"
#include "parallel/positions.h"
#include "parallel/test_ranks.h"

namespace moebius::parallel {
namespace {

void run_group(int size, const std::function<void(Communicator&)>& body, double timeout_s = 60) {
  run_ranks(size, 60, [&](Rendezvous& rendezvous) {
    const int rank = rendezvous.options().rank;
    const auto group = make_gloo_communicator(rendezvous, {.axis = "data",
                                                           .name = "data.0",
                                                           .rank = rank,
                                                           .size = size,
                                                           .world_rank = rank,
                                                           .timeout_s = timeout_s});
    body(*group);
    rendezvous.meet("end of body");  // a group that goes early takes its connections with it
  });
}

at::Tensor values_of(std::vector<double> values, at::ScalarType type = at::kFloat) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<double>());
  return tensor.to(type);
}

TEST(GlooCommunicatorTest, collectives_do_what_they_say_for_every_type) {
  run_group(3, [](Communicator& comm) {
    const double rank = comm.rank();
    for (const at::ScalarType type :
         {at::kFloat, at::kDouble, at::kLong, at::kInt, at::kBFloat16, at::kHalf}) {
      SCOPED_TRACE(c10::toString(type));
      at::Tensor sum = values_of({rank, 1}, type);
      comm.all_reduce(sum).wait();
      EXPECT_TRUE(sum.equal(values_of({3, 3}, type)));
      at::Tensor most = values_of({rank, -rank}, type);
      comm.all_reduce(most, ReduceOp::max).wait();
      EXPECT_TRUE(most.equal(values_of({2, 0}, type)));
      at::Tensor gathered = at::empty({3, 2}, type);
      comm.all_gather(gathered, values_of({rank, rank + 10}, type)).wait();
      EXPECT_TRUE(gathered.view({-1}).equal(values_of({0, 10, 1, 11, 2, 12}, type)));
      at::Tensor part = at::empty({2}, type);
      comm.reduce_scatter(part, at::arange(6, type) * static_cast<int64_t>(rank + 1)).wait();
      EXPECT_TRUE(part.equal(values_of({12 * rank, 12 * rank + 6}, type)));
      at::Tensor told = values_of({rank, rank}, type);
      comm.broadcast(told, 1).wait();
      EXPECT_TRUE(told.equal(values_of({1, 1}, type)));
      Pending sent = comm.send(values_of({rank}, type), (comm.rank() + 1) % 3);
      at::Tensor from_left = at::empty({1}, type);
      comm.receive(from_left, (comm.rank() + 2) % 3).wait();
      sent.wait();
      EXPECT_TRUE(from_left.equal(values_of({static_cast<double>((comm.rank() + 2) % 3)}, type)));
    }
    comm.barrier();
  });
}

// Rank r sends r + t rows, each (r, t), to rank t; rank 0 sends itself none.
TEST(GlooCommunicatorTest, rows_reach_the_ranks_that_they_are_for) {
  run_group(3, [](Communicator& comm) {
    std::vector<int64_t> rows;
    std::vector<double> in, expected;
    for (int other = 0; other < 3; ++other) {
      rows.push_back(comm.rank() + other);
      for (int row = 0; row < comm.rank() + other; ++row) {
        in.insert(in.end(), {static_cast<double>(comm.rank()), static_cast<double>(other)});
        expected.insert(expected.end(), {static_cast<double>(other), static_cast<double>(comm.rank())});
      }
    }
    at::Tensor out = at::empty({static_cast<int64_t>(expected.size()) / 2, 2}, at::kBFloat16);
    comm.all_to_all(out, values_of(in, at::kBFloat16).view({-1, 2}), rows, rows).wait();
    EXPECT_TRUE(out.view({-1}).equal(values_of(expected, at::kBFloat16)));
    const int64_t to_others = comm.rank() == 0 ? 3 : comm.rank() == 1 ? 4 : 5;
    EXPECT_EQ(comm.traffic()["all_to_all"].sent_bytes, to_others * 4);
  });
}

TEST(GlooCommunicatorTest, nothing_can_be_exchanged) {
  run_group(2, [](Communicator& comm) {
    const at::Tensor none = at::empty({0, 4}, at::kFloat);
    comm.all_reduce(none).wait();
    comm.all_gather(none, none).wait();
    comm.reduce_scatter(none, none).wait();
    comm.all_to_all(none, none, {0, 0}, {0, 0}).wait();
    // All rows go to rank 1.
    const bool gets = comm.rank() == 1;
    at::Tensor out = at::empty({gets ? 2 : 0, 4}, at::kFloat);
    comm.all_to_all(out, at::full({1, 4}, 1.0F),
                    gets ? std::vector<int64_t>{1, 1} : std::vector<int64_t>{0, 0}, {0, 1})
        .wait();
    EXPECT_EQ(out.sum().item<float>(), gets ? 8 : 0);
  });
}

TEST(GlooCommunicatorTest, several_collectives_are_under_way_at_once) {
  run_group(2, [](Communicator& comm) {
    std::vector<at::Tensor> tensors;
    std::vector<Pending> pending;
    for (int i = 0; i < 20; ++i) {
      tensors.push_back(at::full({1000 + i}, static_cast<float>(i + comm.rank())));
      pending.push_back(comm.all_reduce(tensors.back()));
    }
    for (int i = 19; i >= 0; --i) {
      pending[static_cast<size_t>(i)].wait();
      EXPECT_TRUE(pending[static_cast<size_t>(i)].is_done());
      EXPECT_TRUE(tensors[static_cast<size_t>(i)].equal(at::full({1000 + i}, static_cast<float>(2 * i + 1))));
    }
  });
}

// Sums in the order of ranks: 1 + 2^24 - 2^24 is 0 in fp32, and 1 in another order.
TEST(GlooCommunicatorTest, sums_of_reduce_scatter_are_in_the_order_of_ranks) {
  run_group(3, [](Communicator& comm) {
    const double big = 1 << 24, mine[] = {1, big, -big};
    at::Tensor part = at::empty({1}, at::kFloat);
    const double value = mine[comm.rank()];
    comm.reduce_scatter(part, values_of({value, value, value})).wait();
    EXPECT_EQ(part.item<float>(), 0);
  });
}

TEST(GlooCommunicatorTest, counts_what_is_sent) {
  run_group(4, [](Communicator& comm) {
    at::Tensor tensor = at::full({8}, 1.0F), part = at::full({2}, 1.0F);
    comm.all_reduce(tensor).wait();
    comm.reduce_scatter(part, tensor).wait();
    comm.all_gather(tensor, part).wait();
    comm.broadcast(tensor, 1).wait();
    EXPECT_EQ(comm.traffic()["all_reduce"].sent_bytes, 2 * 32 * 3 / 4);
    EXPECT_EQ(comm.traffic()["reduce_scatter"].sent_bytes, 32 * 3 / 4);
    EXPECT_EQ(comm.traffic()["all_gather"].sent_bytes, 32 * 3 / 4);
    // A tree from rank 1: to ranks 2 and 3, and from one of them to the last.
    at::Tensor sends = at::full({1}, comm.traffic()["broadcast"].sent_bytes, at::kLong);
    comm.all_reduce(sends).wait();
    EXPECT_EQ(sends.item<int64_t>(), 3 * 32);
    if (comm.rank() == 1) {
      EXPECT_EQ(comm.traffic()["broadcast"].sent_bytes, 2 * 32);
    }
  });
}

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const CommunicationFailed& error) {
    return error.what();
  }
  return "none";
}

TEST(GlooCommunicatorTest, a_rank_that_does_not_come_is_reported_with_the_collective) {
  run_group(
      2,
      [](Communicator& comm) {
        at::Tensor tensor = at::full({4}, 1.0F);
        comm.all_reduce(tensor).wait();
        if (comm.rank() == 1) return;  // hangs, for all that rank 0 knows
        const std::string text = failure_of([&] { comm.all_reduce(tensor).wait(); });
        EXPECT_NE(text.find("axis data, rank 0 of 2 (world rank 0), all_reduce number 2 "), std::string::npos)
            << text;
      },
      1);
}

TEST(PositionsTest, who_is_behind_is_named) {
  run_ranks(3, 60, [](Rendezvous& rendezvous) {
    Positions positions(rendezvous, 0.01);
    const int rank = rendezvous.options().rank;
    EXPECT_EQ(positions.who_is_behind(), "");
    rendezvous.meet("none");
    for (int number = 1; number <= (rank == 2 ? 4 : 5); ++number)
      positions.begin("data", "all_reduce", number);
    positions.who_is_behind();  // posts
    rendezvous.meet("begun");
    EXPECT_EQ(positions.who_is_behind(),
              "rank 2 is behind: its last exchange was all_reduce number 4 on axis data");
    rendezvous.meet("end");
  });
}

TEST(MeshTest, every_axis_reaches_its_own_ranks) {
  const Layout layout({.dp = 2, .tp = 2, .ep = 2, .expert_tp = 2});
  run_ranks(4, 60, [&](Rendezvous& rendezvous) {
    const Mesh mesh(layout, rendezvous, 60);
    const int rank = rendezvous.options().rank;
    for (const Axis axis : kAxes) {
      Communicator& comm = mesh.on(axis);
      EXPECT_EQ(comm.axis(), name_of(axis));
      at::Tensor ranks = at::empty({comm.size()}, at::kLong);
      comm.all_gather(ranks, at::full({1}, rank, at::kLong)).wait();
      const std::vector<int> expected = layout.group(axis, rank);
      for (int i = 0; i < comm.size(); ++i)
        EXPECT_EQ(ranks[i].item<int64_t>(), expected[static_cast<size_t>(i)]);
    }
  });
}

TEST(RendezvousTest, what_does_not_fit_together_is_refused) {
  const auto refusal = [](int size, int told, int as_rank) {
    std::string text = "none";
    try {
      run_ranks(size, 2, [&](Rendezvous& first) {
        if (first.options().rank > 0) return;
        Rendezvous::Options options = first.options();
        options.rank = as_rank;
        options.size = told;
        options.on_port = {};
        Rendezvous second(options);
      });
    } catch (const UserError& error) {
      text = error.what();
    }
    return text;
  };
  EXPECT_NE(refusal(1, 3, 2).find("rank 2 was told of 3 ranks, rank 0 of 1"), std::string::npos);
  EXPECT_NE(refusal(2, 2, 1).find("two processes come to the rendezvous at 127.0.0.1:"), std::string::npos);
}

TEST(RendezvousTest, ranks_that_do_not_come_are_counted) {
  try {
    Rendezvous alone({"127.0.0.1", 0, 0, 2, 0.5});
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("only 1 of 2 ranks came to the rendezvous at 127.0.0.1:"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace moebius::parallel
