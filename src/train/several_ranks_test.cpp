// Steps of several ranks (threads in place of processes) against the step of one process on the same batch.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

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

// The first step of `config` on each of `num_ranks` ranks.
std::vector<Outcome> first_step(const config::RunConfig& config, const data::Sources& sources,
                                int num_ranks) {
  std::vector<Outcome> outcomes(static_cast<size_t>(num_ranks));
  parallel::ThreadMesh ranks(parallel::Layout({.dp = num_ranks}));
  ranks.run([&](const parallel::Mesh& mesh) {
    config::RunConfig own = config;
    own.model.vocab = 256;
    if (own.train.micro_batch == 0) own.train.micro_batch = own.train.batch / num_ranks;
    const auto model = make_model(own, at::kCPU);
    parallel::DataParallel shares(model->params(), parallel::data_axes(mesh, 0), {});
    model->set_gate(&shares);
    AdamW optimizer(own.optimizer, shares.slices());
    TrainStep step(own, *model, optimizer);
    const parallel::RankLoadSum load_sum(mesh.data());
    step.join(mesh, shares, config.train.micro_batch == 0 ? &load_sum : nullptr);
    const auto batches = data::make_training_batches(own.data, sources,
                                                     {.seed = 1,
                                                      .sequence = own.train.sequence,
                                                      .batch = own.train.batch,
                                                      .micro_batch = own.train.micro_batch,
                                                      .vocab_size = 256,
                                                      .parts = num_ranks,
                                                      .part = mesh.rank()});
    std::vector<data::Batch> micro_batches(
        static_cast<size_t>(own.train.batch / own.train.micro_batch / num_ranks));
    for (size_t i = 0; i < micro_batches.size(); ++i)
      batches->fill(0, static_cast<int64_t>(i), micro_batches[i]);
    const StepTotals part = totals_of(micro_batches);
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

TEST(SeveralRanks, the_first_step_has_the_gradients_and_numbers_of_one_process) {
  const TestFolder folder;
  const std::vector<std::function<void(config::RunConfig&)>> changes{
      [](config::RunConfig& c) { c.train.micro_batch = 0; },
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
      }};
  for (size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    config::RunConfig config = tiny_run(folder, "none", 10).config;
    config.model.moe.balance.aux_loss = 0.1;  // enough to be seen in the gradients
    changes[i](config);
    const data::Sources sources = data::open_sources(config.data, folder / "cache");
    const Outcome one = first_step(config, sources, 1)[0];
    for (const int num_ranks : {2, 4}) {
      SCOPED_TRACE(num_ranks);
      const std::vector<Outcome> several = first_step(config, sources, num_ranks);
      const Outcome& first = several[0];
      EXPECT_NEAR(first.numbers.loss, one.numbers.loss, 1e-5 * one.numbers.loss);
      EXPECT_NEAR(first.numbers.balance_loss, one.numbers.balance_loss, 1e-5 * one.numbers.balance_loss);
      EXPECT_NEAR(first.numbers.mtp_loss, one.numbers.mtp_loss, 1e-5 * one.numbers.mtp_loss);
      EXPECT_EQ(first.numbers.num_targets, one.numbers.num_targets);
      EXPECT_EQ(first.numbers.layers.at(0).load, one.numbers.layers.at(0).load);
      EXPECT_NEAR(first.numbers.layers.at(0).entropy, one.numbers.layers.at(0).entropy, 1e-4);
      ASSERT_EQ(first.moments.size(), one.moments.size());
      for (const auto& [name, expected] : one.moments) {
        const double size = expected.norm().item<double>();
        EXPECT_LT((first.moments.at(name) - expected).norm().item<double>(), 1e-5 * size + 1e-9) << name;
      }
      // All ranks hold the same bits, the selection bias among them.
      for (const Outcome& other : several)
        for (const auto& [name, value] : first.values)
          EXPECT_TRUE(other.values.at(name).equal(value)) << name;
    }
  }
}

}  // namespace
}  // namespace moebius::train
