// Steps of several ranks (threads in place of processes) against the step of one process on the same batch.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "base/concat.h"
#include "data/prepare.h"
#include "parallel/data_parallel.h"
#include "parallel/load_sum.h"
#include "parallel/thread_mesh.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/step.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

struct Outcome {
  std::map<std::string, at::Tensor> moments, values;  // first moments: the clipped gradient times 1 - beta1
  StepNumbers numbers;
};

// The first step of `config` on each rank of a layout.
std::vector<Outcome> first_step(const config::RunConfig& config, const data::Sources& sources,
                                const parallel::Layout& layout) {
  std::vector<Outcome> outcomes(static_cast<size_t>(layout.world()));
  parallel::ThreadMesh ranks(layout);
  ranks.run([&](const parallel::Mesh& mesh) {
    config::RunConfig own = config;
    own.model.vocab = 256;
    const int parts = layout.batch_parts();
    if (own.train.micro_batch == 0) own.train.micro_batch = own.train.batch / parts;
    const auto model = make_model(own, at::kCPU, &mesh);
    parallel::DataParallel shares(model->params(), parallel::data_axes(mesh, own.parallel.zero_stage),
                                  {.zero_stage = own.parallel.zero_stage});
    model->set_gate(&shares);
    AdamW optimizer(own.optimizer, shares.slices());
    TrainStep step(own, *model, optimizer);
    const parallel::RankLoadSum load_sum(mesh.data()), of_context(mesh.on(parallel::Axis::cp));
    const nn::LoadSum* const sequence_sum = layout.size(parallel::Axis::cp) > 1 ? &of_context : nullptr;
    step.join(mesh, shares, config.train.micro_batch == 0 ? &load_sum : nullptr, sequence_sum);
    const auto batches = data::make_training_batches(own.data, sources,
                                                     {.seed = 1,
                                                      .sequence = own.train.sequence,
                                                      .batch = own.train.batch,
                                                      .micro_batch = own.train.micro_batch,
                                                      .vocab_size = 256,
                                                      .parts = parts,
                                                      .part = layout.batch_part(mesh.rank())});
    std::vector<data::Batch> micro_batches(
        static_cast<size_t>(own.train.batch / own.train.micro_batch / parts));
    for (size_t i = 0; i < micro_batches.size(); ++i)
      batches->fill(0, static_cast<int64_t>(i), micro_batches[i]);
    const StepTotals part = layout.counts_part(mesh.rank()) ? totals_of(micro_batches) : StepTotals{};
    at::Tensor totals = at::empty({2}, at::kLong);
    totals[0] = part.num_tokens;
    totals[1] = part.num_targets;
    mesh.data().all_reduce(totals).wait();
    Outcome& outcome = outcomes[static_cast<size_t>(mesh.rank())];
    outcome.numbers =
        step.run(1, micro_batches, StepTotals{totals[0].item<int64_t>(), totals[1].item<int64_t>()}).get();
    for (const AdamW::State& state : optimizer.state())
      if (state.name.starts_with("m.")) outcome.moments.emplace(state.name, state.tensor.clone());
    for (const nn::Param& param : model->params().params())
      outcome.values.emplace(param.spec.name, param.value.detach().clone());
  });
  return outcomes;
}

void expect_same_step(const std::vector<Outcome>& several, const Outcome& one) {
  const Outcome& first = several[0];
  EXPECT_NEAR(first.numbers.loss, one.numbers.loss, 1e-5 * one.numbers.loss);
  EXPECT_NEAR(first.numbers.balance_loss, one.numbers.balance_loss, 1e-5 * one.numbers.balance_loss);
  EXPECT_NEAR(first.numbers.mtp_loss, one.numbers.mtp_loss, 1e-5 * one.numbers.mtp_loss);
  EXPECT_EQ(first.numbers.num_targets, one.numbers.num_targets);
  EXPECT_EQ(first.numbers.num_tokens, one.numbers.num_tokens);
  EXPECT_EQ(first.numbers.layers.at(0).load, one.numbers.layers.at(0).load);
  EXPECT_NEAR(first.numbers.layers.at(0).entropy, one.numbers.layers.at(0).entropy, 1e-4);
  ASSERT_EQ(first.moments.size(), one.moments.size());
  for (const auto& [name, expected] : one.moments) {
    const double size = expected.norm().item<double>();
    EXPECT_LT((first.moments.at(name) - expected).norm().item<double>(), 1e-5 * size + 1e-9) << name;
  }
  // All ranks hold the same bits, the selection bias among them.
  for (const Outcome& other : several)
    for (const auto& [name, value] : first.values) EXPECT_TRUE(other.values.at(name).equal(value)) << name;
}

using Change = std::function<void(config::RunConfig&)>;

void expect_as_one_process(const std::vector<Change>& changes, const std::vector<parallel::Layout>& layouts) {
  const TestFolder folder;
  for (size_t i = 0; i < changes.size(); ++i) {
    config::RunConfig config = tiny_run(folder, "none", 10).config;
    config.model.moe.balance.aux_loss = 0.1;  // enough to be seen in the gradients
    changes[i](config);
    const data::Sources sources = data::open_sources(config.data, folder / "cache");
    const Outcome one = first_step(config, sources, parallel::Layout())[0];
    for (const parallel::Layout& layout : layouts) {
      SCOPED_TRACE(concat("change ", i, ", ", describe(layout)));
      expect_same_step(first_step(config, sources, layout), one);
    }
  }
}

TEST(SeveralRanks, the_first_step_has_the_gradients_and_numbers_of_one_process) {
  expect_as_one_process({[](config::RunConfig& c) { c.train.micro_batch = 0; },
                         [](config::RunConfig& c) { c.train.micro_batch = 1; },
                         [](config::RunConfig& c) {
                           c.train.micro_batch = 0;
                           c.model.moe.balance.aux_scope = "model";
                           c.train.recompute = "full";
                         },
                         [](config::RunConfig& c) {
                           c.train.micro_batch = 0;
                           c.model.moe.balance.aux_scope = "sequence";
                           c.model.mtp.depth = 1;
                         }},
                        {parallel::Layout({.dp = 2}), parallel::Layout({.dp = 4})});
}

// Each rank of cp has a part of the tokens of every sequence.
TEST(SeveralRanks, that_share_sequences_have_the_gradients_and_numbers_of_one_process) {
  expect_as_one_process(
      {[](config::RunConfig& c) { c.train.micro_batch = 0; },
       [](config::RunConfig& c) {
         c.train.micro_batch = 1;
         c.train.recompute = "selective";
       },
       [](config::RunConfig& c) {
         c.model.moe.balance.aux_scope = "model";
         c.train.recompute = "full";
       },
       [](config::RunConfig& c) {
         c.model.moe.balance.aux_scope = "sequence";
         c.model.mtp.depth = 1;
         c.data.batching = "pad";
       },
       [](config::RunConfig& c) {
         c.data.batching = "pack";
         c.model.sliding_window = 5;
         c.model.attention_sinks = true;
         c.model.qk_norm = "none";
       },
       [](config::RunConfig& c) {
         c.model.attention = "mla";
         c.model.qk_norm = "none";
         c.model.mla = {.q_rank = 12, .kv_rank = 16, .nope_dim = 8, .rope_dim = 4, .value_dim = 10};
       }},
      {parallel::Layout({.cp = 2}), parallel::Layout({.cp = 4}), parallel::Layout({.dp = 2, .cp = 2})});
}

}  // namespace
}  // namespace moebius::train
