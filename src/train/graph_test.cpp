// Steps that are recorded and replayed, with a recorder that keeps the body and runs it again: what a
// recording would keep of the step it was made in shows as a difference.
#include "ops/graph.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "config/load.h"
#include "data/batches.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace moebius::train {
namespace {

class BodyRecorder final : public ops::GraphRecorder {
 public:
  explicit BodyRecorder(bool fails = false) : fails_(fails) {}

  std::unique_ptr<ops::Graph> record(const std::function<void()>& body) override {
    if (fails_)
      throw std::runtime_error("operation not permitted when stream is capturing\nC++ CapturedTraceback");
    return std::make_unique<Body>(body);
  }

 private:
  struct Body final : ops::Graph {
    explicit Body(std::function<void()> b) : body(std::move(b)) {}
    void replay() override { body(); }
    std::function<void()> body;
  };
  bool fails_;
};

constexpr int64_t kSteps = 10;

config::RunConfig graph_config() {
  return config::parse_run_config(R"(
[model]
layers = 2
dim = 32
heads = 4
kv_heads = 2
qk_norm = "head"
vocab = 64
[model.moe]
experts = 4
expert_dim = 24
balance.bias_rate = 0.001
[data]
synthetic = true
[train]
steps = 10
sequence = 16
batch = 4
micro_batch = 2
[optimizer]
lr = 1e-2
[schedule]
kind = "cosine"
warmup_steps = 4
)",
                                  "test");
}

struct Trained {
  std::vector<double> losses, norms;
  std::vector<at::Tensor> parameters;
  int64_t num_replayed = 0;
};

// `shorter`: the sequence length of every third step, 0: always the same.
Trained train_with(std::unique_ptr<ops::GraphRecorder> recorder, int64_t shorter = 0) {
  const config::RunConfig config = graph_config();
  const auto decoder = make_model(config, at::kCPU);
  AdamW optimizer(config.optimizer, decoder->params());
  TrainStep step(config, *decoder, optimizer, std::move(recorder));
  Trained trained;
  for (int64_t i = 1; i <= kSteps; ++i) {
    const int64_t sequence = shorter > 0 && i % 3 == 0 ? shorter : config.train.sequence;
    data::SyntheticBatches source(1, {sequence, 4, 2, config.model.vocab});
    std::vector<data::Batch> batches(2);
    for (size_t micro = 0; micro < 2; ++micro) source.fill(i, static_cast<int64_t>(micro), batches[micro]);
    const PendingNumbers pending = step.run(i, batches);
    const StepNumbers numbers = pending.get();
    trained.losses.push_back(numbers.loss);
    trained.norms.push_back(numbers.gradient_norm);
  }
  for (const nn::Param& param : decoder->params().params())
    trained.parameters.push_back(param.value.detach());
  trained.num_replayed = step.num_replayed();
  return trained;
}

void expect_same(const Trained& got, const Trained& want) {
  EXPECT_EQ(got.losses, want.losses);
  EXPECT_EQ(got.norms, want.norms);
  for (size_t i = 0; i < want.parameters.size(); ++i)
    EXPECT_TRUE(at::equal(got.parameters[i], want.parameters[i])) << i;
}

TEST(StepGraph, replayed_steps_are_the_steps_they_stand_for) {
  const Trained plain = train_with(nullptr), graphed = train_with(std::make_unique<BodyRecorder>());
  EXPECT_EQ(plain.num_replayed, 0);
  EXPECT_EQ(graphed.num_replayed, kSteps - 2);
  expect_same(graphed, plain);
}

TEST(StepGraph, every_shape_of_batch_has_its_recording) {
  const Trained plain = train_with(nullptr, 8), graphed = train_with(std::make_unique<BodyRecorder>(), 8);
  EXPECT_EQ(graphed.num_replayed, kSteps - 4);
  expect_same(graphed, plain);
}

TEST(StepGraph, what_cannot_be_recorded_is_run_as_without) {
  const Trained failing = train_with(std::make_unique<BodyRecorder>(/*fails=*/true));
  EXPECT_EQ(failing.num_replayed, 0);
  expect_same(failing, train_with(nullptr));
}

}  // namespace
}  // namespace moebius::train
