// Steps as CUDA graphs against steps without, on a GPU.
#include <gtest/gtest.h>

#include "config/load.h"
#include "data/batches.h"
#include "ops/device.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace moebius::train {
namespace {

constexpr int64_t kGraphSteps = 10;

// `more`: one override, or "".
config::RunConfig gpu_config(const char* more, bool graph) {
  std::vector<std::string> all;
  for (const char* each :
       {"train.precision=bf16", "optimizer.master_weights=false", "optimizer.state_dtype=bf16", more})
    if (*each != 0) all.emplace_back(each);
  all.emplace_back(graph ? "train.cuda_graph=true" : "train.cuda_graph=false");
  return config::parse_run_config(R"(
[model]
layers = 2
dim = 256
heads = 4
kv_heads = 2
head_dim = 64
qk_norm = "head"
vocab = 512
[model.moe]
experts = 8
expert_dim = 128
balance.bias_rate = 0.001
[data]
synthetic = true
[train]
steps = 10
sequence = 128
batch = 4
micro_batch = 2
[optimizer]
lr = 1e-3
[schedule]
kind = "cosine"
warmup_steps = 4
)",
                                  "test", all);
}

struct GpuTrained {
  std::vector<double> losses, norms;
  std::vector<at::Tensor> parameters;
  int64_t num_replayed = 0;
};

GpuTrained train_on_gpu(const config::RunConfig& config) {
  const at::Device device = ops::choose_device("cuda");
  const auto decoder = make_model(config, device);
  AdamW optimizer(config.optimizer, decoder->params());
  TrainStep step(config, *decoder, optimizer);
  GpuTrained trained;
  for (int64_t i = 1; i <= kGraphSteps; ++i) {
    const int64_t micro_batch = config.train.micro_batch;
    data::SyntheticBatches source(1, {config.train.sequence, 4, micro_batch, config.model.vocab});
    std::vector<data::Batch> batches(static_cast<size_t>(4 / micro_batch));
    for (size_t micro = 0; micro < batches.size(); ++micro)
      source.fill(i, static_cast<int64_t>(micro), batches[micro]);
    const PendingNumbers pending = step.run(i, batches);
    const StepNumbers numbers = pending.get();
    trained.losses.push_back(numbers.loss);
    trained.norms.push_back(numbers.gradient_norm);
  }
  for (const nn::Param& param : decoder->params().params())
    trained.parameters.push_back(param.value.detach().cpu());
  trained.num_replayed = step.num_replayed();
  return trained;
}

class CudaStepGraph : public testing::TestWithParam<const char*> {};

TEST_P(CudaStepGraph, ten_steps_are_the_same_bit_for_bit) {
  if (ops::cuda_plugin() == nullptr) GTEST_SKIP() << ops::load_cuda_plugin().why;
  const GpuTrained plain = train_on_gpu(gpu_config(GetParam(), false)),
                   again = train_on_gpu(gpu_config(GetParam(), false));
  ASSERT_EQ(plain.losses, again.losses) << "steps without a graph differ from run to run";
  const GpuTrained graphed = train_on_gpu(gpu_config(GetParam(), true));
  EXPECT_EQ(graphed.num_replayed, kGraphSteps - 2);
  EXPECT_EQ(graphed.losses, plain.losses);
  EXPECT_EQ(graphed.norms, plain.norms);
  for (size_t i = 0; i < plain.parameters.size(); ++i)
    EXPECT_TRUE(at::equal(graphed.parameters[i], plain.parameters[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Configs, CudaStepGraph,
                         testing::Values("", "train.micro_batch=4", "train.recompute=selective",
                                         "train.recompute=full", "optimizer.state_dtype=int8"));

}  // namespace
}  // namespace moebius::train
