// A small model with experts, trained by one rank and by several with every ZeRO stage.
#include "parallel/data_parallel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <mutex>

#include "moe/moe_feed_forward.h"
#include "nn/decoder.h"
#include "ops/optimizer.h"
#include "parallel/solo_communicator.h"
#include "parallel/thread_group.h"
#include "parallel/zero_test_model.h"

namespace moebius::parallel {
namespace {

struct ZeroSetup {
  int64_t stage = 0;
  int ranks = 1;
  int replicas = 1;           // of the shards, among the ranks
  int64_t micro_batches = 4;  // of all ranks together
  int64_t steps = 20;
  double grad_clip = 0.5;
  nn::Recompute recompute = nn::Recompute::none;
  at::ScalarType dtype = at::kFloat;
};

struct ZeroOutcome {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<at::Tensor> params;
  std::map<std::string, Traffic> traffic;  // of rank 0, without the sums of the norm
  DataParallel::Bytes held, peak;
  int64_t state_bytes = 0;
  int64_t payload_bytes = 0, block_bytes = 0;  // buckets with their gaps; those of blocks
};

// One rank's run. The loss is summed over the ranks outside of what is measured.
ZeroOutcome train_rank(const ZeroSetup& setup, const DataAxis& axis, Communicator& aside) {
  Communicator& data = *axis.shard;
  auto decoder = moe::make_decoder(zero_model());
  decoder->params().allocate(setup.dtype, at::kCPU);
  decoder->params().initialise(5);
  DataParallel parallel(decoder->params(), {axis, axis, &aside},
                        {.zero_stage = setup.stage, .bucket_bytes = 20'000, .by_block = true});
  decoder->set_gate(&parallel);

  std::vector<OwnedSlice> slices = parallel.slices();
  std::vector<ops::AdamWState> states;
  ZeroOutcome outcome;
  for (const OwnedSlice& slice : slices) {
    const at::TensorOptions fp32(at::kFloat);
    ops::AdamWState& state = states.emplace_back();
    state.param = slice.value;
    state.grad = slice.grad;
    state.m = at::zeros({slice.end - slice.begin}, fp32);
    state.v = at::zeros({slice.end - slice.begin}, fp32);
    state.lr = 0.01;
    state.weight_decay = 0.1;
    outcome.state_bytes += static_cast<int64_t>(2 * state.m.nbytes());
  }
  nn::ForwardOptions options;
  options.with_losses = true;
  options.recompute = setup.recompute;
  const int64_t own = setup.micro_batches / aside.size();
  for (int64_t step = 1; step <= setup.steps; ++step) {
    at::Tensor loss = at::zeros({});
    for (int64_t i = 0; i < own; ++i) {
      const nn::TokenBatch batch = zero_batch(step, own * aside.rank() + i);
      const nn::DecoderOutput output = decoder->forward(batch, options);
      const double scale = 1.0 / static_cast<double>(kZeroTokens * setup.micro_batches);
      at::Tensor total = decoder->loss(output.hidden_TD, batch.targets_T, scale);
      loss += total.detach();
      total = total + output.balance_loss / static_cast<double>(setup.micro_batches);
      parallel.begin_backward(i == own - 1);
      total.backward();
      parallel.end_backward();
    }
    parallel.finish_gradients();
    const at::Tensor norm = parallel.sum_of_squares().sqrt();
    for (size_t i = 0; i < slices.size(); ++i)
      if (!slices[i].grad.defined()) states[i].grad = slices[i].param->value.grad().view({-1});
    ops::adamw_step(states, {0.9, 0.95, 1e-8, step}, ops::clip_scale(norm, setup.grad_clip));
    if (setup.stage == 0)
      for (ops::AdamWState& each : states) each.grad.reset();
    parallel.finish_update();
    aside.all_reduce(loss).wait();
    outcome.losses.push_back(loss.item<double>());
    outcome.norms.push_back(norm.item<double>());
  }
  outcome.traffic = data.traffic();
  outcome.held = parallel.held_bytes();
  outcome.peak = parallel.peak_bytes();
  for (const FlatBucket& bucket : parallel.buckets()) {
    const auto bytes = bucket.size * static_cast<int64_t>(c10::elementSize(bucket.dtype));
    outcome.payload_bytes += bytes;
    if (bucket.block != kOutsideBlocks) outcome.block_bytes += bytes;
  }
  parallel.gather_all();
  for (const nn::Param& param : decoder->params().params())
    outcome.params.push_back(param.value.detach().clone());
  return outcome;
}

std::vector<ZeroOutcome> train_all(const ZeroSetup& setup) {
  ThreadGroup all(setup.ranks, "all");
  std::vector<std::unique_ptr<ThreadGroup>> shards, replicas;
  for (int i = 0; i < setup.replicas; ++i)
    shards.push_back(std::make_unique<ThreadGroup>(setup.ranks / setup.replicas, "shard"));
  for (int i = 0; i < setup.ranks / setup.replicas; ++i)
    replicas.push_back(std::make_unique<ThreadGroup>(setup.replicas, "replica"));
  std::vector<ZeroOutcome> outcomes(static_cast<size_t>(setup.ranks));
  all.run([&](Communicator& comm) {
    const int shard = comm.rank() / setup.replicas, replica = comm.rank() % setup.replicas;
    const DataAxis axis{&(*shards[static_cast<size_t>(replica)])[shard],
                        setup.replicas > 1 ? &(*replicas[static_cast<size_t>(shard)])[replica] : nullptr};
    outcomes[static_cast<size_t>(comm.rank())] = train_rank(setup, axis, comm);
  });
  return outcomes;
}

void expect_same(const ZeroOutcome& a, const ZeroOutcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.norms, b.norms);
  for (size_t i = 0; i < a.params.size(); ++i) EXPECT_TRUE(at::equal(a.params[i], b.params[i])) << i;
}

void expect_near(const ZeroOutcome& a, const ZeroOutcome& b) {
  for (size_t i = 0; i < a.losses.size(); ++i)
    EXPECT_NEAR(a.losses[i], b.losses[i], 1e-4 * std::abs(a.losses[i])) << "step " << i + 1;
  EXPECT_NEAR(a.norms[0], b.norms[0], 1e-5 * a.norms[0]);
}

TEST(DataParallelTest, every_stage_trains_as_one_process_does) {
  const ZeroOutcome one = train_all({}).front();
  EXPECT_LT(one.losses.back(), 0.7 * one.losses.front());
  for (const int ranks : {2, 4}) {
    for (int64_t stage = 0; stage <= 3; ++stage) {
      SCOPED_TRACE(testing::Message() << "stage " << stage << " on " << ranks << " ranks");
      const std::vector<ZeroOutcome> several = train_all({.stage = stage, .ranks = ranks});
      expect_near(one, several.front());
      for (const ZeroOutcome& each : several) expect_same(several.front(), each);
    }
  }
}

// Sums have one order then: over the ranks first where each has one micro-batch, and where each has two
// micro-batches for stages that add those up first.
TEST(DataParallelTest, stages_are_equal_bit_for_bit_where_the_order_of_sums_is) {
  const ZeroOutcome plain = train_all({.ranks = 4, .steps = 5}).front();
  for (int64_t stage = 1; stage <= 3; ++stage)
    expect_same(plain, train_all({.stage = stage, .ranks = 4, .steps = 5}).front());
  expect_same(train_all({.stage = 0, .ranks = 2, .steps = 5}).front(),
              train_all({.stage = 1, .ranks = 2, .steps = 5}).front());
  expect_same(train_all({.stage = 2, .ranks = 2, .steps = 5}).front(),
              train_all({.stage = 3, .ranks = 2, .steps = 5}).front());
}

TEST(DataParallelTest, copies_of_the_shards_stay_alike) {
  const ZeroOutcome one = train_all({.steps = 6}).front();
  for (int64_t stage = 0; stage <= 3; ++stage) {
    SCOPED_TRACE(testing::Message() << "stage " << stage);
    const std::vector<ZeroOutcome> several =
        train_all({.stage = stage, .ranks = 4, .replicas = 2, .steps = 6});
    expect_near(one, several.front());
    for (const ZeroOutcome& each : several) expect_same(several.front(), each);
  }
}

TEST(DataParallelTest, one_rank_with_any_stage_is_a_run_without_it) {
  const ZeroOutcome plain = train_all({.steps = 4, .recompute = nn::Recompute::none}).front();
  for (int64_t stage = 1; stage <= 3; ++stage)
    expect_same(plain, train_all({.stage = stage, .steps = 4}).front());
}

TEST(DataParallelTest, parameters_that_come_and_go_suit_recomputation) {
  const ZeroOutcome plain = train_all({.ranks = 2, .micro_batches = 2, .steps = 4}).front();
  for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full})
    expect_same(
        plain,
        train_all({.stage = 3, .ranks = 2, .micro_batches = 2, .steps = 4, .recompute = recompute}).front());
}

TEST(DataParallelTest, bf16_parameters_keep_their_own_buckets) {
  const ZeroOutcome plain =
      train_all({.ranks = 2, .micro_batches = 2, .steps = 4, .dtype = at::kBFloat16}).front();
  for (int64_t stage = 1; stage <= 3; ++stage)
    expect_same(
        plain, train_all({.stage = stage, .ranks = 2, .micro_batches = 2, .steps = 4, .dtype = at::kBFloat16})
                   .front());
}

TEST(DataParallelTest, sends_what_theory_says) {
  constexpr int kRanks = 4;
  constexpr int64_t kSteps = 3, kOwn = 2;  // micro-batches of a rank
  for (int64_t stage = 0; stage <= 3; ++stage) {
    SCOPED_TRACE(testing::Message() << "stage " << stage);
    ZeroOutcome outcome =
        train_all({.stage = stage, .ranks = kRanks, .micro_batches = kRanks * kOwn, .steps = kSteps}).front();
    const int64_t ring = outcome.payload_bytes * (kRanks - 1) / kRanks,
                  block_ring = outcome.block_bytes * (kRanks - 1) / kRanks;
    EXPECT_EQ(outcome.traffic["all_reduce"].sent_bytes, stage == 0 ? 2 * ring * kSteps : 0);
    EXPECT_EQ(outcome.traffic["reduce_scatter"].sent_bytes,
              stage == 0 ? 0 : ring * kSteps * (stage == 1 ? 1 : kOwn));
    const int64_t updates = stage == 0 ? 0 : (stage == 3 ? ring - block_ring : ring) * kSteps;
    // Stage 3 gathers each block forward and backward, the last one once for both.
    const int64_t gathers = outcome.traffic["all_gather"].sent_bytes - updates;
    if (stage < 3) {
      EXPECT_EQ(gathers, 0);
    } else {
      EXPECT_LT(gathers, 2 * block_ring * kOwn * kSteps);
      EXPECT_GE(gathers, (2 * kZeroLayers - 1) * block_ring / kZeroLayers * kOwn * kSteps * 9 / 10);
    }
    // Gaps between parameters are the only bytes that theory lacks.
    int64_t values = 0;
    for (const at::Tensor& param : outcome.params) values += static_cast<int64_t>(param.nbytes());
    EXPECT_LT(static_cast<double>(outcome.payload_bytes), 1.2 * static_cast<double>(values));
  }
}

TEST(DataParallelTest, holds_what_theory_says) {
  constexpr int kRanks = 4;
  for (int64_t stage = 0; stage <= 3; ++stage) {
    SCOPED_TRACE(testing::Message() << "stage " << stage);
    const ZeroOutcome outcome = train_all({.stage = stage, .ranks = kRanks, .steps = 2}).front();
    const int64_t whole = outcome.payload_bytes, blocks = outcome.block_bytes;
    int64_t values = 0;
    for (const at::Tensor& param : outcome.params) values += static_cast<int64_t>(param.nbytes());
    if (stage == 0) {
      EXPECT_EQ(outcome.held.parameters, values);
    } else {
      EXPECT_NEAR(static_cast<double>(outcome.held.parameters),
                  static_cast<double>(stage == 3 ? whole - blocks + blocks / kRanks : whole),
                  0.01 * static_cast<double>(whole));
    }
    EXPECT_EQ(outcome.held.gradients, stage < 2 ? whole : whole / kRanks);
    EXPECT_LE(outcome.state_bytes, 2 * (stage == 0 ? values : whole / kRanks));
    if (stage == 2) {
      // One bucket of whole gradients or two at a time.
      EXPECT_LT(outcome.peak.gradients, whole);
    }
    if (stage == 3) {
      // Two blocks of three are there at once.
      EXPECT_LT(outcome.peak.parameters, whole + blocks / kRanks);
      EXPECT_GT(outcome.peak.parameters, outcome.held.parameters);
    }
  }
}

TEST(DataParallelTest, evaluation_passes_gather_and_release_too) {
  ThreadGroup data(2, "data");
  data.run([&](Communicator& comm) {
    std::vector<at::Tensor> hidden;
    for (const int64_t stage : {0, 3}) {
      auto decoder = moe::make_decoder(zero_model());
      decoder->params().allocate(at::kFloat, at::kCPU);
      decoder->params().initialise(5);
      const DataAxes axes{{&comm, nullptr}, {&comm, nullptr}, &comm};
      DataParallel parallel(decoder->params(), axes, {.zero_stage = stage});
      decoder->set_gate(&parallel);
      const int64_t before = parallel.held_bytes().parameters;
      const at::NoGradGuard no_grad;
      const nn::TokenBatch batch = zero_batch(1, 0);
      hidden.push_back(decoder->forward(batch, {}).hidden_TD);
      EXPECT_EQ(parallel.held_bytes().parameters, before);
      nn::KvCache cache = decoder->make_cache(kZeroTokens);
      hidden.push_back(decoder->next_logits(batch.tokens_T, cache));
      EXPECT_EQ(parallel.held_bytes().parameters, before);
    }
    EXPECT_TRUE(at::equal(hidden[0], hidden[2]));
    EXPECT_TRUE(at::equal(hidden[1], hidden[3]));
  });
}

}  // namespace
}  // namespace moebius::parallel
