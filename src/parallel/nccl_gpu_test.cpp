// NCCL with one rank, and ranks that share a GPU through Gloo, on a GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "moe/dispatcher.h"
#include "ops/device.h"
#include "parallel/c10d_communicator.h"
#include "parallel/collective_watch.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"
#include "parallel/test_ranks.h"

namespace moebius::parallel {
namespace {

at::TensorOptions on_gpu(at::ScalarType type, int gpu = 0) {
  return at::TensorOptions().device(at::kCUDA, static_cast<at::DeviceIndex>(gpu)).dtype(type);
}

// Every class of collective, for `comm` of any size; values are small whole numbers, so that sums are exact.
void expect_collectives(Communicator& comm, at::ScalarType type, int gpu = 0) {
  SCOPED_TRACE(c10::toString(type));
  const int64_t n = comm.size(), rank = comm.rank();
  const auto numbers = [&](int64_t count, int64_t first) {
    return (at::arange(count, on_gpu(at::kLong, gpu)) + first).to(type);
  };
  const at::Tensor sum = numbers(4, rank), most = numbers(4, 10 * rank),
                   whole = at::empty({n, 3}, on_gpu(type, gpu)), part = at::empty({2}, on_gpu(type, gpu)),
                   rows = at::empty({n, 2}, on_gpu(type, gpu)), told = numbers(3, rank);
  std::vector<Pending> pending;
  pending.push_back(comm.all_reduce(sum));
  pending.push_back(comm.all_reduce(most, ReduceOp::max));
  pending.push_back(comm.all_gather(whole, numbers(3, rank)));
  pending.push_back(comm.reduce_scatter(part, numbers(2 * n, 0)));
  const std::vector<int64_t> one_each(static_cast<size_t>(n), 1);
  pending.push_back(comm.all_to_all(rows, numbers(2 * n, 10 * rank).view({n, 2}), one_each, one_each));
  pending.push_back(comm.broadcast(told, comm.size() - 1));
  if (n > 1) {
    // First messages go round in a ring, which one rank opens.
    const auto pass_on = [&] {
      pending.push_back(comm.send(numbers(2, rank), static_cast<int>((rank + 1) % n)));
    };
    if (rank == 0) pass_on();
    const at::Tensor got = at::empty({2}, on_gpu(type, gpu));
    comm.receive(got, static_cast<int>((rank + n - 1) % n)).wait();
    if (rank != 0) pass_on();
    EXPECT_TRUE(got.equal(numbers(2, (rank + n - 1) % n)));
  }
  for (Pending& each : pending) each.wait();
  comm.barrier();
  EXPECT_TRUE(sum.equal(numbers(4, 0) * n + n * (n - 1) / 2)) << sum;
  EXPECT_TRUE(most.equal(numbers(4, 10 * (n - 1)))) << most;
  EXPECT_TRUE(part.equal(numbers(2, 2 * rank) * n)) << part;
  EXPECT_TRUE(told.equal(numbers(3, n - 1))) << told;
  for (int64_t r = 0; r < n; ++r) {
    EXPECT_TRUE(whole[r].equal(numbers(3, r))) << whole;
    EXPECT_TRUE(rows[r].equal(numbers(2, 10 * r + 2 * rank))) << rows;
  }
}

void run_nccl(const std::function<void(Communicator&)>& body) {
  run_ranks(1, 60, [&](Rendezvous& rendezvous) {
    std::string trouble;
    {
      CollectiveWatch watch([&](const std::string& text) { trouble = text; });
      const auto comm = make_nccl_communicator(
          rendezvous, {.axis = "data", .name = "data.0", .timeout_s = 60}, at::Device(at::kCUDA, 0), &watch);
      body(*comm);
    }
    EXPECT_EQ(trouble, "");
  });
}

#define MOEBIUS_NEEDS_GPU() \
  if (ops::cuda_plugin() == nullptr) GTEST_SKIP() << ops::load_cuda_plugin().why

TEST(NcclOnGpu, every_collective_works_with_one_rank) {
  MOEBIUS_NEEDS_GPU();
  run_nccl([](Communicator& comm) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kLong, at::kInt, at::kDouble})
      expect_collectives(comm, type);
    // Tensors of the host go another way, under the same name.
    const at::Tensor host = at::arange(3);
    comm.all_reduce(host).wait();
    EXPECT_TRUE(host.equal(at::arange(3)));
    EXPECT_EQ(comm.traffic().at("all_reduce").calls, 11);
    EXPECT_EQ(comm.traffic().at("all_reduce").sent_bytes, 0);
  });
}

// A rank (thread) for each GPU of the machine, so that messages and sums do cross.
TEST(NcclOnGpu, every_collective_works_between_gpus) {
  MOEBIUS_NEEDS_GPU();
  int gpus = 0;
  kernels::DeviceInfo info{};
  while (gpus < 8 && ops::cuda_plugin()->device_info(gpus, &info)) ++gpus;
  if (gpus < 2) GTEST_SKIP() << "one GPU";
  run_ranks(gpus, 60, [&](Rendezvous& rendezvous) {
    const int rank = rendezvous.options().rank;
    const auto comm = make_nccl_communicator(
        rendezvous,
        {.axis = "data", .name = "data.0", .rank = rank, .size = gpus, .world_rank = rank, .timeout_s = 60},
        at::Device(at::kCUDA, static_cast<at::DeviceIndex>(rank)), nullptr);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kLong})
      expect_collectives(*comm, type, rank);
    ops::cuda_plugin()->synchronize(rank);
    rendezvous.meet("end of body");
  });
}

// The stream waits, not the host: work queued before and after the exchange runs in order without a
// synchronisation between.
TEST(NcclOnGpu, a_wait_orders_the_stream) {
  MOEBIUS_NEEDS_GPU();
  run_nccl([](Communicator& comm) {
    const at::Tensor a = at::ones({1 << 22}, on_gpu(at::kFloat)), b = at::empty_like(a);
    for (int i = 0; i < 50; ++i) {
      a.mul_(1.0).add_(1);
      Pending pending = comm.all_gather(b, a);
      pending.wait();
      a.copy_(b);
    }
    EXPECT_TRUE(a.equal(at::full_like(a, 51)));
  });
}

TEST(NcclOnGpu, experts_behind_it_give_the_same_bits) {
  MOEBIUS_NEEDS_GPU();
  run_nccl([](Communicator& comm) {
    at::manual_seed(5);
    constexpr int64_t kTokens = 300, kDim = 128, kFfn = 64, kExperts = 8;
    const auto draw = [](at::IntArrayRef sizes) { return at::randn(sizes, on_gpu(at::kFloat)) * 0.1; };
    const moe::ExpertWeights experts{draw({kExperts, 2 * kFfn, kDim}), draw({kExperts, kDim, kFfn}), {}};
    const at::Tensor x_TD = draw({kTokens, kDim});
    ops::RouteOptions options;
    const ops::Routing routing = ops::route(draw({kTokens, kExperts}), {}, {}, 1, options);
    const at::NoGradGuard no_grad;
    const at::Tensor expected = moe::LocalDispatcher().apply(x_TD, routing, experts, false, [] {});
    const at::Tensor found = ExpertDispatcher(comm, kExperts, 2).apply(x_TD, routing, experts, false, [] {});
    EXPECT_LT((expected - found).abs().max().item<float>(), 1e-6f);
  });
}

TEST(StagedOnGpu, ranks_that_share_a_gpu_exchange_through_the_host) {
  MOEBIUS_NEEDS_GPU();
  run_ranks(3, 60, [&](Rendezvous& rendezvous) {
    const int rank = rendezvous.options().rank;
    StagedCommunicator comm(make_gloo_communicator(
        rendezvous,
        {.axis = "data", .name = "data.0", .rank = rank, .size = 3, .world_rank = rank, .timeout_s = 60}));
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kLong}) expect_collectives(comm, type);
    rendezvous.meet("end of body");
  });
}

}  // namespace
}  // namespace moebius::parallel
