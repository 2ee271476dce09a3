#include "parallel/transport.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>

#include "base/error.h"
#include "config/load.h"
#include "parallel/c10d_base.h"
#include "parallel/collective_watch.h"
#include "parallel/staged_communicator.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const UserError& error) {
    return error.what();
  }
  return "none";
}

config::RunConfig config_with(const std::vector<std::string>& overrides) {
  return config::parse_run_config("[model]\nvocab = 256\n[data]\nsynthetic = true\n", "test", overrides);
}

TEST(Transport, is_nccl_where_each_rank_has_a_gpu_of_its_own) {
  const Transport own = choose_transport("auto", {"a of m", "b of m", "a of n"}, 1);
  EXPECT_EQ(own.kind, Transport::Kind::nccl);
  EXPECT_EQ(own.ranks_on_device, 1);
  const Transport shared = choose_transport("auto", {"a of m", "b of m", "a of m"}, 2);
  EXPECT_EQ(shared.kind, Transport::Kind::gloo);
  EXPECT_EQ(shared.ranks_on_device, 2);
  EXPECT_EQ(choose_transport("auto", {"", ""}, 0).kind, Transport::Kind::gloo);
  EXPECT_EQ(choose_transport("gloo", {"a of m", "b of m"}, 0).kind, Transport::Kind::gloo);
}

TEST(Transport, refuses_nccl_for_ranks_that_share_a_gpu_or_have_none) {
  EXPECT_EQ(error_of([] {
              choose_transport("nccl", {"00:1 of m", "00:2 of m", "00:1 of m"}, 1);
            }),
            "parallel.backend is 'nccl', which needs a GPU for each process, but ranks 0 and 2 share the GPU "
            "00:1; start one process per GPU (CUDA_VISIBLE_DEVICES says which a process sees), or set "
            "parallel.backend to 'auto' or 'gloo'");
  EXPECT_NE(error_of([] {
              choose_transport("nccl", {"00:1 of m", ""}, 0);
            }).find("rank 1 runs on the CPU"),
            std::string::npos);
}

TEST(Transport, refuses_what_cannot_serve_before_any_process_is_started) {
  EXPECT_EQ(error_of([] { check_backend(config_with({"parallel.backend=nccl"}), false); }),
            "parallel.backend is 'nccl', but the run is on the CPU, and NCCL moves data between GPUs only; "
            "set it to 'auto' or 'gloo', or run on GPUs with --device cuda");
  EXPECT_NE(error_of([] {
              check_backend(config_with({"train.cuda_graph=true"}), true);
            }).find("train.cuda_graph is true, but the run has several processes"),
            std::string::npos);
  EXPECT_EQ(error_of([] { check_backend(config_with({"train.cuda_graph=true"}), false); }), "none");
  EXPECT_EQ(
      error_of([] { check_gpu_count(config_with({"parallel.backend=nccl"}), 4, 2); }),
      "parallel.backend is 'nccl', which needs a GPU for each process, but there are 4 processes and 2 "
      "GPUs on this machine; start at most 2 with --nproc, or set parallel.backend to 'auto' or 'gloo': "
      "processes then share GPUs");
  EXPECT_EQ(error_of([] { check_gpu_count(config_with({}), 4, 2); }), "none");
  EXPECT_EQ(error_of([] { check_gpu_count(config_with({"parallel.backend=nccl"}), 2, 2); }), "none");
}

TEST(StagedCommunicator, does_what_that_behind_it_does) {
  ThreadGroup group(2);
  group.run([](Communicator& real) {
    StagedCommunicator comm(std::make_unique<BorrowedCommunicator>(real), /*copies_host=*/true);
    const int64_t rank = comm.rank();
    const at::Tensor sum = at::full({3}, rank + 1, at::kFloat), whole = at::empty({2, 2}, at::kFloat),
                     part = at::empty({2}, at::kFloat), rows = at::empty({3, 1}, at::kFloat),
                     told = at::full({2}, rank, at::kLong), got = at::empty({2}, at::kFloat);
    std::vector<Pending> pending;
    pending.push_back(comm.all_reduce(sum, ReduceOp::sum));
    pending.push_back(comm.all_gather(whole, at::full({2}, rank, at::kFloat)));
    pending.push_back(comm.reduce_scatter(part, at::arange(4, at::kFloat)));
    // Rank r keeps one row and sends two to the other, or the other way round.
    const int64_t to_first = rank == 0 ? 1 : 2;
    pending.push_back(comm.all_to_all(rows, at::full({3, 1}, rank, at::kFloat),
                                      {rank == 0 ? 1 : 2, rank == 0 ? 2 : 1}, {to_first, 3 - to_first}));
    pending.push_back(comm.broadcast(told, 1));
    pending.push_back(comm.send(at::full({2}, 10 + rank, at::kFloat), 1 - comm.rank()));
    pending.push_back(comm.receive(got, 1 - comm.rank()));
    for (Pending& each : pending) each.wait();
    comm.barrier();
    EXPECT_TRUE(sum.equal(at::full({3}, 3, at::kFloat)));
    EXPECT_TRUE(whole.equal(at::arange(2, at::kFloat).view({2, 1}).expand({2, 2})));
    EXPECT_TRUE(part.equal((at::arange(2, at::kFloat) + 2 * rank) * 2));
    EXPECT_EQ(rows.sum().item<float>(), rank == 0 ? 2 : 1);
    EXPECT_TRUE(told.equal(at::full({2}, 1, at::kLong)));
    EXPECT_TRUE(got.equal(at::full({2}, 11 - rank, at::kFloat)));
    EXPECT_EQ(comm.traffic(), real.traffic());
  });
}

class FakeWork final : public c10d::Work {
 public:
  bool isCompleted() override { return is_done; }
  void fail(const std::string& text) {
    finish(std::make_exception_ptr(std::runtime_error(text)));
    is_done = true;
  }
  std::atomic<bool> is_done = false;
};

Place place_of(const char* axis, int64_t number, double timeout_s) {
  return {axis, "all_reduce", 1, 4, 5, number, timeout_s, nullptr};
}

std::string text_of_watch(const std::function<void(CollectiveWatch&)>& add) {
  std::promise<std::string> told;
  std::future<std::string> text = told.get_future();
  CollectiveWatch watch([&](const std::string& what) { told.set_value(what); }, 0.01);
  add(watch);
  if (text.wait_for(std::chrono::seconds(30)) != std::future_status::ready) return "nothing";
  return text.get();
}

TEST(CollectiveWatch, names_the_first_of_an_axis_that_does_not_end) {
  EXPECT_EQ(text_of_watch([](CollectiveWatch& watch) {
              for (int64_t number = 1; number <= 3; ++number) {
                const auto work = c10::make_intrusive<FakeWork>();
                work->is_done = number == 1;
                watch.add(place_of("dp", number, 0.05), work);
                watch.add(place_of("tp", number, 1e6), c10::make_intrusive<FakeWork>());
              }
            }),
            "axis dp, rank 1 of 4 (world rank 5), all_reduce number 2 did not end within 0.05 s "
            "(parallel.timeout_s): a rank hangs, or is at another collective");
}

TEST(CollectiveWatch, tells_what_has_failed) {
  EXPECT_EQ(text_of_watch([](CollectiveWatch& watch) {
              const auto work = c10::make_intrusive<FakeWork>();
              work->fail("remote error\nwith a trace");
              watch.add(place_of("ep", 7, 1e6), work);
            }),
            "axis ep, rank 1 of 4 (world rank 5), all_reduce number 7: a rank is gone, or the network "
            "(remote error)");
}

}  // namespace
}  // namespace moebius::parallel
