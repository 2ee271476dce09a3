// The plan's peak against the measured one: tensors of a real training step on the CPU, counted in the
// allocator.
#include "train/memory_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "config/load.h"
#include "data/batches.h"
#include "moe/moe_feed_forward.h"
#include "parallel/thread_mesh.h"
#include "train/counted_memory.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace moebius::train {
namespace {

config::RunConfig config_with(const std::vector<std::string>& overrides) {
  return config::parse_run_config(R"(
[model]
layers = 3
dim = 128
heads = 4
kv_heads = 4
ffn_dim = 384
vocab = 512
[data]
synthetic = true
[train]
sequence = 256
batch = 2
micro_batch = 2
)",
                                  "test", overrides);
}

// With a mesh on one of its ranks.
void take_a_step(const config::RunConfig& config, const parallel::Mesh* mesh) {
  const config::TrainSection& train = config.train;
  const auto decoder = make_model(config, at::kCPU, mesh);
  AdamW optimizer(config.optimizer, decoder->params());
  TrainStep step(config, *decoder, optimizer);
  data::SyntheticBatches source(train.seed,
                                {train.sequence, train.batch, train.micro_batch, config.model.vocab});
  std::vector<data::Batch> batches(static_cast<size_t>(train.batch / train.micro_batch));
  for (size_t i = 0; i < batches.size(); ++i) source.fill(0, static_cast<int64_t>(i), batches[i]);
  step.run(1, batches).get();
}

int64_t measured_peak(const config::RunConfig& config) {
  const CountedMemory memory;
  take_a_step(config, nullptr);
  return memory.peak_bytes();
}

// What `moebius plan` promises is a tenth. The plan follows the operators closely enough to be held to much
// less here, where even the order of two allocations would show.
constexpr double kPromised = 0.10, kExpected = 0.02;

struct Case {
  std::string name;
  std::vector<std::string> overrides;
  double bound = kExpected;
};

class MeasuredMemory : public testing::TestWithParam<Case> {};

TEST_P(MeasuredMemory, is_as_planned) {
  const config::RunConfig config = config_with(GetParam().overrides);
  const MemoryPlan plan = plan_memory(config, moe::make_decoder(config.model)->params(), false);
  const int64_t measured = measured_peak(config);
  const double error = static_cast<double>(plan.peak_bytes()) / static_cast<double>(measured) - 1;
  EXPECT_LE(std::abs(error), GetParam().bound)
      << "planned " << plan.peak_bytes() << " bytes (in the " << plan.peak_moment << "), measured "
      << measured << (std::abs(error) > kPromised ? "; that is past what is promised" : "");
}

constexpr char kExperts[] = "model.moe.experts=8", kBf16[] = "train.precision=bf16",
               kFull[] = "train.recompute=full", kSelective[] = "train.recompute=selective",
               kTied[] = "model.tied_embeddings=true", kMicro[] = "train.micro_batch=1";

// Latent attention, small enough for the dim of these tests.
std::vector<std::string> latent(const std::vector<std::string>& more) {
  std::vector<std::string> all{"model.attention=mla", "model.mla.kv_rank=64", "model.mla.nope_dim=32",
                               "model.mla.rope_dim=16", "model.mla.value_dim=32"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

class MemoryOnGrid : public testing::TestWithParam<Case> {};

// Four ranks as threads, which do the same at about the same time: a quarter of what they hold together.
TEST_P(MemoryOnGrid, is_as_planned) {
  config::RunConfig config = config_with(GetParam().overrides);
  config.parallel.tp = 4;
  config.parallel.tp_mode = "2d";
  const auto decoder = moe::make_decoder(config.model);
  const nn::AxisPlace first{2, 0};
  decoder->params().split({.ep = first, .tp = first, .grid = first});
  const MemoryPlan plan = plan_memory(config, decoder->params(), false);
  parallel::ThreadMesh mesh(parallel::make_layout(config, 4));
  const CountedMemory memory;
  mesh.run([&](const parallel::Mesh& own) { take_a_step(config, &own); });
  const int64_t measured = memory.peak_bytes() / 4;
  const double error = static_cast<double>(plan.peak_bytes()) / static_cast<double>(measured) - 1;
  EXPECT_LE(std::abs(error), GetParam().bound) << "planned " << plan.peak_bytes() << " bytes (in the "
                                               << plan.peak_moment << "), measured " << measured;
}

// What is not the usual path is planned less finely.
INSTANTIATE_TEST_SUITE_P(
    Forms, MeasuredMemory,
    testing::Values(
        Case{"biases",
             {"model.attention_bias=true", "model.attention_output_bias=true", "model.ffn_bias=true"},
             kPromised},
        Case{"window_and_sinks",
             {"model.sliding_window=32", "model.attention_sinks=true", "model.rotary_dim=16", kBf16},
             kPromised},
        Case{"latent", latent({}), kPromised},
        Case{"latent_compressed_queries_bf16", latent({"model.mla.q_rank=96", kBf16, kExperts}), kPromised},
        Case{"latent_full", latent({"model.mla.q_rank=96", kFull}), kPromised},
        Case{
            "shared_gate", {kExperts, "model.moe.shared_experts=1", "model.moe.shared_gate=true"}, kPromised},
        Case{"groups",
             {kExperts, "model.moe.groups=4", "model.moe.top_groups=2", "model.moe.selection_bias=true",
              "model.moe.balance.aux_scope=model"},
             kPromised},
        Case{"biased_experts",
             {kExperts, "model.moe.expert_bias=true", "model.moe.router_bias=true"},
             kPromised},
        Case{"clamped_experts",
             {kExperts, "model.moe.expert_bias=true", "model.moe.activation=clamped_swiglu"},
             kPromised},
        Case{"clamped_experts_bf16_selective",
             {kExperts, "model.moe.activation=clamped_swiglu", kBf16, kSelective},
             kPromised},
        Case{"multi_token", {"model.mtp.depth=1"}, kPromised},
        Case{"multi_token_tied_full", {"model.mtp.depth=1", kExperts, kTied, kFull}, kPromised}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Forms, MemoryOnGrid,
    testing::Values(Case{"dense", {}, kPromised}, Case{"dense_selective", {kSelective}, kPromised},
                    Case{"dense_full", {kFull}, kPromised}, Case{"experts", {kExperts}, kPromised},
                    Case{"experts_selective", {kExperts, kSelective}, kPromised},
                    Case{"tied_shared_experts",
                         {kExperts, kTied, "model.moe.shared_experts=1", "model.moe.dense_layers=0"},
                         kPromised}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Configs, MeasuredMemory,
    testing::Values(
        Case{"dense", {}}, Case{"dense_selective", {kSelective}}, Case{"dense_full", {kFull}},
        Case{"dense_bf16", {kBf16}}, Case{"dense_tied", {kTied, "model.vocab=4096"}},
        Case{"dense_tied_bf16_micro", {kTied, kBf16, kMicro, "model.vocab=4096"}},
        Case{"wide_vocabulary", {"model.vocab=4096"}},
        Case{"wide_vocabulary_bf16", {kBf16, "model.vocab=4096"}},
        Case{"attention", {"model.dim=32", "model.head_dim=64", "model.ffn_dim=16", "model.vocab=16"}},
        Case{"attention_bf16",
             {kBf16, "model.dim=32", "model.head_dim=64", "model.ffn_dim=16", "model.vocab=16"}},
        Case{"attention_grouped",
             {"model.dim=32", "model.head_dim=64", "model.ffn_dim=16", "model.vocab=16", "model.kv_heads=1",
              "model.qk_norm=head"}},
        Case{"grouped_heads", {"model.kv_heads=2", "model.qk_norm=head"}},
        Case{"full_norm_bf16", {"model.qk_norm=full", kBf16}}, Case{"experts", {kExperts}},
        Case{"experts_selective", {kExperts, kSelective}}, Case{"experts_full", {kExperts, kFull}},
        Case{"experts_bf16", {kExperts, kBf16}},
        Case{"experts_bf16_selective", {kExperts, kBf16, kSelective}},
        Case{"experts_bf16_full", {kExperts, kBf16, kFull}},
        Case{"experts_no_master",
             {kExperts, kBf16, "optimizer.master_weights=false", "optimizer.state_dtype=bf16"}},
        Case{"normed_heads_selective", {kExperts, "model.qk_norm=head", kSelective}},
        Case{"normed_heads_bf16_selective", {kExperts, "model.qk_norm=full", kBf16, kSelective}},
        Case{"one_layer_selective", {kExperts, kSelective, "train.recompute_layers=1"}},
        Case{"two_layers_full", {kExperts, kBf16, kFull, "train.recompute_layers=2"}},
        Case{"dense_bf16_selective", {kBf16, kSelective}},
        Case{"experts_eight_bit", {kExperts, kBf16, "optimizer.state_dtype=int8"}},
        Case{"experts_micro", {kExperts, kMicro}}, Case{"experts_micro_bf16", {kExperts, kMicro, kBf16}},
        Case{"many_experts_micro",
             {"model.moe.experts=64", "model.moe.top_k=4", "train.batch=2", "train.micro_batch=1"}},
        Case{"shared_experts", {kExperts, "model.moe.shared_experts=1", "model.moe.dense_layers=0"}},
        Case{"shared_experts_selective", {kExperts, "model.moe.shared_experts=2", kSelective}},
        Case{"long_sequence",
             {kExperts, "train.sequence=1024", "train.batch=1", "train.micro_batch=1", kBf16}}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

}  // namespace
}  // namespace moebius::train
