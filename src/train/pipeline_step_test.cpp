// Steps of a model whose layers are dealt out to stages (threads in place of processes), alone and beside
// other axes, against the steps of one process on the same batches.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>

#include "base/parallel.h"
#include "data/prepare.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "parallel/data_parallel.h"
#include "parallel/shared_embedding.h"
#include "parallel/thread_mesh.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/sharded_state.h"
#include "train/step.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

using Sizes = parallel::Layout::Sizes;

struct TrainedInStages {
  std::vector<StepNumbers> steps;
  std::map<std::string, at::Tensor>
      moments;  // whole, after the first step: clipped gradients times 1 - beta1
  double validation_loss = 0, validation_violation = 0;
  int64_t sent_bytes = 0;  // by the first rank to a later stage, in the first step
  at::Tensor next_logits;
};

config::RunConfig staged_config(const TestFolder& folder, int64_t layers) {
  config::RunConfig config = tiny_run(folder, "none", 20).config;
  config.model.layers = layers;
  config.model.vocab = 256;
  config.model.kv_heads = 4;
  config.model.moe.balance.aux_loss = 0.1;  // enough to be seen in the gradients
  config.train.micro_batch = 1;
  return config;
}

parallel::Layout layout_of(const config::RunConfig& config, const Sizes& sizes) {
  config::RunConfig own = config;
  own.parallel.dp = sizes.dp;
  own.parallel.fsdp = sizes.fsdp;
  return parallel::make_layout(own, sizes.pp * sizes.dp * sizes.fsdp * sizes.tp);
}

// What the writers of a checkpoint would write of the first moments.
void keep_moments(ShardedState& state, int rank, std::mutex& mutex, std::map<std::string, at::Tensor>& all) {
  for (const ckpt::PendingGroup& group : state.capture()) {
    for (const ckpt::PendingTensor& tensor : group.tensors) {
      if (tensor.writer != rank || !tensor.spec.name.starts_with("m.")) continue;
      at::Tensor values = at::empty(tensor.spec.shape, at::kFloat);
      size_t at = 0;
      tensor.emit([&](std::span<const std::byte> bytes) {
        std::memcpy(static_cast<std::byte*>(values.mutable_data_ptr()) + at, bytes.data(), bytes.size());
        at += bytes.size();
      });
      const std::lock_guard lock(mutex);
      all[tensor.spec.name] = values;
    }
  }
}

TrainedInStages train_in_stages(const config::RunConfig& config, const data::Sources& sources,
                                const Sizes& sizes, int64_t num_steps) {
  TrainedInStages trained;
  std::mutex mutex;
  parallel::ThreadMesh ranks(layout_of(config, sizes));
  ranks.run([&](const parallel::Mesh& mesh) {
    const auto model = make_model(config, at::kCPU, &mesh);
    parallel::DataParallelOptions how{.zero_stage = config.parallel.zero_stage, .bucket_bytes = 20'000};
    if (nn::Decoder::is_embedding_shared(config.model, sizes.pp)) parallel::share_embedding(mesh, how);
    parallel::DataParallel shares(model->params(), parallel::data_axes(mesh, how.zero_stage), how);
    model->set_gate(&shares);
    AdamW optimizer(config.optimizer, shares.slices());
    TrainStep step(config, *model, optimizer);
    step.join(mesh, shares);
    ShardedState state(pieces_of(*model, shares, optimizer), mesh.world());
    const int parts = mesh.layout().batch_parts();
    const auto batches = data::make_training_batches(config.data, sources,
                                                     {.seed = 1,
                                                      .sequence = config.train.sequence,
                                                      .batch = config.train.batch,
                                                      .micro_batch = config.train.micro_batch,
                                                      .vocab_size = 256,
                                                      .parts = parts,
                                                      .part = mesh.layout().batch_part(mesh.rank())});
    std::vector<data::Batch> micro_batches(
        static_cast<size_t>(config.train.batch / config.train.micro_batch / parts));
    for (int64_t i = 1; i <= num_steps; ++i) {
      for (size_t m = 0; m < micro_batches.size(); ++m)
        batches->fill(i - 1, static_cast<int64_t>(m), micro_batches[m]);
      const StepTotals own = totals_of(micro_batches);
      at::Tensor totals = at::empty({2}, at::kLong);
      totals[0] = own.num_tokens;
      totals[1] = own.num_targets;
      mesh.data().all_reduce(totals).wait();
      const StepNumbers numbers =
          step.run(i, micro_batches, StepTotals{totals[0].item<int64_t>(), totals[1].item<int64_t>()}).get();
      if (i == 1 && mesh.is_first() && sizes.pp > 1)
        trained.sent_bytes = mesh.on(parallel::Axis::pp).traffic().at("send").sent_bytes;
      if (i == 1) keep_moments(state, mesh.rank(), mutex, trained.moments);
      if (mesh.is_first()) trained.steps.push_back(numbers);
    }
    data::ValidationSet validation(sources.validation, sources.tokenizer, 256, config.train.sequence, 2);
    const Evaluation evaluation = evaluate(*model, validation, 3, &mesh);
    nn::KvCache cache = model->make_cache(8);
    at::Tensor logits = model->next_logits(at::arange(5, at::kLong), cache);
    logits = model->next_logits(at::arange(1, at::kLong), cache);
    if (!mesh.is_first()) return;
    trained.validation_loss = evaluation.loss;
    trained.validation_violation = evaluation.max_violation;
    trained.next_logits = logits;
  });
  return trained;
}

void expect_same(const TrainedInStages& one, const TrainedInStages& several) {
  ASSERT_EQ(one.steps.size(), several.steps.size());
  for (size_t i = 0; i < one.steps.size(); ++i) {
    const StepNumbers &want = one.steps[i], &have = several.steps[i];
    const auto near = [&](double value, double expected, const char* what) {
      EXPECT_NEAR(value, expected, 1e-4 * std::abs(expected)) << what << " of step " << i + 1;
    };
    near(have.loss, want.loss, "loss");
    near(have.balance_loss, want.balance_loss, "balance loss");
    near(have.mtp_loss, want.mtp_loss, "loss of the token after next");
    near(have.gradient_norm, want.gradient_norm, "norm");
    EXPECT_EQ(have.num_targets, want.num_targets);
  }
  ASSERT_EQ(one.steps[0].layers.size(), several.steps[0].layers.size());
  for (size_t i = 0; i < one.steps[0].layers.size(); ++i) {
    EXPECT_EQ(several.steps[0].layers[i].layer, one.steps[0].layers[i].layer);
    EXPECT_EQ(several.steps[0].layers[i].load, one.steps[0].layers[i].load);
    EXPECT_NEAR(several.steps[0].layers[i].entropy, one.steps[0].layers[i].entropy, 1e-4);
  }
  ASSERT_EQ(one.moments.size(), several.moments.size());
  for (const auto& [name, want] : one.moments)
    EXPECT_LE(ops::cases::normalised_error(several.moments.at(name).to(at::kDouble), want.to(at::kDouble)),
              ops::cases::tolerance(ops::cases::OpClass::layer, at::kFloat))
        << name;
  EXPECT_NEAR(several.validation_loss, one.validation_loss, 1e-4 * one.validation_loss);
  EXPECT_NEAR(several.validation_violation, one.validation_violation, 1e-2);
  EXPECT_LT((several.next_logits - one.next_logits).abs().max().item<float>(), 1e-3);
}

class PipelineStep : public testing::Test {
 protected:
  // Ranks are threads: more in each of them would only get in each other's way.
  PipelineStep() { set_num_threads(1); }
  ~PipelineStep() override { set_num_threads(threads_); }

  struct Layout {
    const char* name;
    Sizes sizes;
    std::function<void(config::ParallelConfig&)> change = [](config::ParallelConfig&) {};
  };

  void expect_like_one_process(const config::RunConfig& config, const std::vector<Layout>& layouts,
                               int64_t num_steps = 8) {
    const data::Sources sources = data::open_sources(config.data, folder / "cache");
    const TrainedInStages one = train_in_stages(config, sources, {}, num_steps);
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(layout.name);
      config::RunConfig own = config;
      own.parallel.pp = layout.sizes.pp;
      own.parallel.tp = layout.sizes.tp;
      own.parallel.ep = layout.sizes.ep;
      layout.change(own.parallel);
      expect_same(one, train_in_stages(own, sources, layout.sizes, num_steps));
    }
  }

  TestFolder folder;

 private:
  const int threads_ = num_threads();
};

TEST_F(PipelineStep, micro_batches_in_turns_train_as_one_process_does) {
  config::RunConfig config = staged_config(folder, 2);
  config.train.batch = 12;  // three pairs for each of two ranks; for each of four a pair and one that is left
  config.train.micro_batch = 1;
  const auto pairs = [](int64_t zero_stage, int64_t chunks) {
    return [=](config::ParallelConfig& p) {
      p.ep_pairs = true;
      p.zero_stage = zero_stage;
      p.ep_chunks = chunks;
    };
  };
  expect_like_one_process(config, {{"ep 2", {.dp = 2, .ep = 2}, pairs(0, 1)},
                                   {"ep 2, zero 1, two chunks", {.fsdp = 2, .ep = 2}, pairs(1, 2)},
                                   {"ep 2 of 4, zero 2", {.fsdp = 4, .ep = 2}, pairs(2, 1)}});
  config.train.recompute = "full";
  expect_like_one_process(config, {{"ep 2, recomputed", {.dp = 2, .ep = 2}, pairs(0, 1)}}, 3);
  config.train.recompute = "selective";
  expect_like_one_process(config, {{"ep 2, partly recomputed", {.fsdp = 2, .ep = 2}, pairs(2, 1)}}, 3);
}

TEST_F(PipelineStep, one_forward_one_backward_trains_as_one_process_does) {
  config::RunConfig config = staged_config(folder, 4);
  expect_like_one_process(
      config,
      {{"pp 2", {.pp = 2}},
       {"pp 4", {.pp = 4}},
       {"pp 2, uneven",
        {.pp = 2},
        [](auto& p) {
          p.pp_layers = {3, 1};
        }},
       {"pp 2 x dp 2", {.pp = 2, .dp = 2}},
       {"pp 2 x tp 2", {.pp = 2, .tp = 2, .expert_tp = 2}},
       {"pp 2 x ep 2", {.pp = 2, .dp = 2, .ep = 2}},
       {"pp 2 x fsdp 2", {.pp = 2, .fsdp = 2}, [](auto& p) { p.zero_stage = 1; }},
       {"pp 2 x fsdp 2, stage 2", {.pp = 2, .fsdp = 2}, [](auto& p) { p.zero_stage = 2; }},
       {"pp 2 x fsdp 2, stage 3", {.pp = 2, .fsdp = 2}, [](auto& p) { p.zero_stage = 3; }}},
      20);
}

// A grid of tensor ranks has no stages, but all else that is compared here.
TEST_F(PipelineStep, a_grid_of_tensor_ranks_trains_as_one_process_does) {
  config::RunConfig config = staged_config(folder, 2);
  config.model.moe.shared_experts = 1;
  config.model.moe.dense_layers = {1};
  config.model.moe.balance.bias_rate = 0.001;
  const auto on_grid = [](int64_t zero_stage) {
    return [zero_stage](config::ParallelConfig& p) {
      p.tp_mode = "2d";
      p.zero_stage = zero_stage;
    };
  };
  expect_like_one_process(config, {{"tp 4", {.tp = 4}, on_grid(0)}}, 20);
  expect_like_one_process(config,
                          {{"tp 4 x dp 2", {.dp = 2, .tp = 4}, on_grid(0)},
                           {"tp 4 x fsdp 2, stage 1", {.fsdp = 2, .tp = 4}, on_grid(1)},
                           {"tp 4 x fsdp 2, stage 3", {.fsdp = 2, .tp = 4}, on_grid(3)}},
                          4);
}

// T D values for each micro-batch and border; with two pieces per stage there are two borders upwards.
TEST_F(PipelineStep, sends_what_theory_says) {
  config::RunConfig config = staged_config(folder, 4);
  const data::Sources sources = data::open_sources(config.data, folder / "cache");
  const int64_t stream_bytes = config.train.sequence * config.model.dim * 4;
  config.parallel.pp = 2;
  EXPECT_EQ(train_in_stages(config, sources, {.pp = 2}, 1).sent_bytes, 4 * stream_bytes);
  config.parallel.tp = 2;
  EXPECT_EQ(train_in_stages(config, sources, {.pp = 2, .tp = 2}, 1).sent_bytes, 4 * stream_bytes / 2);
  config.parallel.tp = 1;
  config.parallel.pp_schedule = "interleaved";
  config.parallel.pp_chunks = 2;
  // And the gradients of the border that goes back to the first stage.
  EXPECT_EQ(train_in_stages(config, sources, {.pp = 2}, 1).sent_bytes, 3 * 4 * stream_bytes);
}

TEST_F(PipelineStep, stages_of_several_pieces_train_as_one_process_does) {
  config::RunConfig config = staged_config(folder, 5);
  config.train.recompute = "full";
  const auto interleaved = [](int64_t chunks) {
    return [chunks](config::ParallelConfig& p) {
      p.pp_schedule = "interleaved";
      p.pp_chunks = chunks;
    };
  };
  expect_like_one_process(config, {{"2 x 2", {.pp = 2}, interleaved(2)},
                                   {"2 x 2, dp 2", {.pp = 2, .dp = 2}, interleaved(2)},
                                   {"2 x 2, fsdp 2", {.pp = 2, .fsdp = 2}, [&](auto& p) {
                                      interleaved(2)(p);
                                      p.zero_stage = 1;
                                    }}});
}

TEST_F(PipelineStep, gradients_of_weights_may_come_later) {
  config::RunConfig config = staged_config(folder, 4);
  const auto zero_bubble = [](config::ParallelConfig& p) { p.pp_schedule = "zero_bubble"; };
  for (const char* recompute : {"none", "full"}) {
    SCOPED_TRACE(recompute);
    config.train.recompute = recompute;
    expect_like_one_process(config, {{"pp 2", {.pp = 2}, zero_bubble},
                                     {"pp 4", {.pp = 4}, zero_bubble},
                                     {"pp 2 x dp 2, ep 2", {.pp = 2, .dp = 2, .ep = 2}, zero_bubble},
                                     {"pp 2 x tp 2", {.pp = 2, .tp = 2, .expert_tp = 2}, zero_bubble}});
  }
}

TEST_F(PipelineStep, shares_the_embedding_between_the_first_stage_and_the_last) {
  config::RunConfig config = staged_config(folder, 3);
  config.model.tied_embeddings = true;
  config.model.mtp.depth = 1;
  config.model.moe.balance.bias_rule = "forecast";
  expect_like_one_process(config,
                          {{"pp 2", {.pp = 2}},
                           {"pp 3", {.pp = 3}},
                           {"pp 2 x tp 2", {.pp = 2, .tp = 2, .expert_tp = 2}},
                           {"pp 2 x fsdp 2", {.pp = 2, .fsdp = 2}, [](auto& p) { p.zero_stage = 1; }}});
}

}  // namespace
}  // namespace moebius::train
