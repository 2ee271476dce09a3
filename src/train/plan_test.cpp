#include "train/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/test_folder.h"
#include "config/load.h"
#include "moe/moe_feed_forward.h"
#include "train/flops.h"
#include "train/recompute_choice.h"

namespace moebius::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr int64_t kGiB = int64_t{1} << 30;

config::RunConfig plan_config(const std::vector<std::string>& overrides = {}) {
  return config::parse_run_config(R"(
[model]
layers = 4
dim = 64
heads = 4
kv_heads = 2
ffn_dim = 96
vocab = 1000
qk_norm = "head"
[model.moe]
experts = 8
top_k = 2
expert_dim = 32
shared_experts = 1
dense_layers = [0]
[data]
synthetic = true
[train]
sequence = 128
batch = 12
precision = "bf16"
)",
                                  "test", overrides);
}

// Qwen3-30B-A3B, 16,384 tokens.
config::RunConfig qwen_config(const std::vector<std::string>& overrides = {}) {
  return config::parse_run_config(R"(
[model]
layers = 48
dim = 2048
heads = 32
kv_heads = 4
head_dim = 128
vocab = 32000
qk_norm = "head"
[model.moe]
experts = 128
top_k = 8
expert_dim = 768
[data]
synthetic = true
[train]
precision = "bf16"
sequence = 4096
batch = 4
)",
                                  "test", overrides);
}

TEST(RecomputeChoice, saves_what_the_design_asks_for_on_the_shape_of_qwen3) {
  const std::vector<RecomputeOption> options = recompute_options(qwen_config(), /*on_cuda=*/true);
  ASSERT_EQ(options.size(), 3u);
  const auto share = [&](size_t i) {
    return static_cast<double>(options[i].held_bytes) / static_cast<double>(options[0].held_bytes);
  };
  EXPECT_LE(share(1), 0.40);
  EXPECT_LE(share(2), 0.20);
  const double flops = model_flops_per_token(qwen_config().model, 4096);
  EXPECT_LE(options[1].extra_flops_per_token, 0.12 * flops);
  // A whole pass forward, less the output layer.
  EXPECT_NEAR(options[2].extra_flops_per_token / flops, 1.0 / 3, 0.03);
}

TEST(RecomputeChoice, takes_the_least_that_fits) {
  // Several passes: the gradients are there while a pass has its activations.
  const config::RunConfig config = qwen_config({"train.micro_batch=1"});
  const std::vector<RecomputeOption> options = recompute_options(config, true);
  const auto chosen = [&](int64_t budget_bytes) {
    config::RunConfig with = config;
    with.memory.budget_gib = static_cast<double>(budget_bytes) / static_cast<double>(kGiB);
    return with_recompute(with, true, std::nullopt);
  };
  EXPECT_EQ(chosen(options[0].needed_bytes).train.recompute, "none");
  const config::RunConfig some = chosen(options[0].needed_bytes - kGiB);
  EXPECT_EQ(some.train.recompute, "selective");
  EXPECT_GT(some.train.recompute_layers, 0);
  EXPECT_LE(make_plan(some, true).needed_bytes(), options[0].needed_bytes - kGiB);
  config::RunConfig less = some;
  --less.train.recompute_layers;
  EXPECT_GT(make_plan(less, true).needed_bytes(), options[0].needed_bytes - kGiB);
  const config::RunConfig more = chosen(options[1].needed_bytes - kGiB);
  EXPECT_EQ(more.train.recompute, "full");
  EXPECT_GT(more.train.recompute_layers, 0);
  const config::RunConfig most = chosen(1);
  EXPECT_EQ(most.train.recompute, "full");
  for (const RecomputeOption& option : options)
    EXPECT_LE(make_plan(most, true).needed_bytes(), option.needed_bytes);
  EXPECT_EQ(with_recompute(config, true, std::nullopt).train.recompute, "none");
  EXPECT_EQ(with_recompute(config, true, kGiB).train.recompute, "full");
}

TEST(RecomputeChoice, recomputes_nothing_for_nothing) {
  // One pass: the peak lies in the last layer's backward, where all gradients are there and no activations.
  config::RunConfig config = qwen_config();
  config.memory.budget_gib = 1;
  const config::RunConfig chosen = with_recompute(config, true, std::nullopt);
  const int64_t needed = make_plan(chosen, true).needed_bytes();
  for (const RecomputeOption& option : recompute_options(config, true))
    EXPECT_LE(needed, option.needed_bytes);
}

TEST(Plan, counts_parameters) {
  const Plan plan = make_plan(plan_config(), false);
  const int64_t attention = 64 * 128 + 64 * 64, dense = 3 * 64 * 96, one_expert = 3 * 64 * 32;
  const std::vector<std::pair<nn::ParamClass, int64_t>> expected{
      {nn::ParamClass::expert, 3 * 8 * one_expert},
      {nn::ParamClass::dense, 4 * attention + dense + 3 * one_expert},
      {nn::ParamClass::embedding, 2 * 1000 * 64},
      {nn::ParamClass::router, 3 * 8 * 64},
      {nn::ParamClass::norm, 4 * (2 * 64 + 2 * 16) + 64}};
  EXPECT_EQ(plan.parameters, expected);
  int64_t total = 0;
  for (const auto& [klass, count] : plan.parameters) total += count;
  EXPECT_EQ(plan.total_parameters, total);
  EXPECT_EQ(plan.active_parameters, total - 3 * 6 * one_expert);
  EXPECT_EQ(make_plan(plan_config({"model.moe.experts=0"}), false).active_parameters,
            make_plan(plan_config({"model.moe.experts=0"}), false).total_parameters);
}

// Overrides that bring in every parameter there is, alone and together.
std::vector<std::vector<std::string>> parameter_options() {
  const std::string mla = "model.attention=mla";
  return {
      {"model.attention_bias=true", "model.attention_output_bias=true", "model.attention_sinks=true"},
      {"model.ffn_bias=true", "model.rotary_dim=8", "model.sliding_window=16"},
      {mla, "model.qk_norm=none", "model.mla.kv_rank=24", "model.mla.nope_dim=16", "model.mla.rope_dim=8"},
      {mla, "model.qk_norm=none", "model.mla.q_rank=40", "model.attention_bias=true",
       "model.attention_output_bias=true"},
      {"model.moe.shared_gate=true", "model.moe.shared_dim=72"},
      {"model.moe.router_bias=true", "model.moe.expert_bias=true", "model.moe.activation=clamped_swiglu"},
      {"model.moe.selection_bias=true", "model.moe.groups=4", "model.moe.top_groups=2"},
      {"model.mtp.depth=1"},
      {"model.mtp.depth=1", "model.tied_embeddings=true", "model.moe.experts=0"},
  };
}

TEST(Plan, knows_weights_and_gradients_of_every_option) {
  for (std::vector<std::string> overrides : parameter_options()) {
    SCOPED_TRACE(testing::PrintToString(overrides));
    for (const bool on_cuda : {false, true})
      for (const char* recompute : {"none", "selective", "full"}) {
        std::vector<std::string> all = overrides;
        all.insert(all.end(), {"train.precision=fp32", std::string("train.recompute=") + recompute});
        const config::RunConfig config = plan_config(all);
        const Plan plan = make_plan(config, on_cuda);
        const auto decoder = moe::make_decoder(config.model);
        EXPECT_EQ(plan.total_parameters, decoder->params().num_elements());
        int64_t weights = 0, gradients = 0;
        for (const nn::Param& param : decoder->params().params()) {
          const int64_t bytes = 4 * param.spec.num_elements();
          const int64_t rounded = on_cuda ? (bytes + 511) / 512 * 512 : bytes;
          weights += rounded;
          if (!param.spec.is_buffer) gradients += rounded;
        }
        EXPECT_EQ(plan.memory.largest.weights_bytes, weights);
        EXPECT_EQ(plan.memory.largest.gradients_bytes, gradients);
      }
  }
}

TEST(Plan, counts_arithmetic_of_latent_attention_and_windows) {
  const auto linear = [](const std::vector<std::string>& overrides) {
    return active_linear_weights(plan_config(overrides).model);
  };
  const std::vector<std::string> mla{"model.attention=mla",   "model.qk_norm=none",    "model.mla.q_rank=40",
                                     "model.mla.kv_rank=24",  "model.mla.nope_dim=16", "model.mla.rope_dim=8",
                                     "model.mla.value_dim=12"};
  const int64_t heads = 4 * (64 * 128 + 64 * 64);  // of the usual attention, all layers
  const int64_t latent = 4 * (64 * 40 + 40 * 4 * 24 + 64 * 32 + 24 * 4 * 28 + 48 * 64);
  EXPECT_EQ(linear(mla) - linear({}), latent - heads);
  EXPECT_EQ(linear({"model.moe.shared_dim=72", "model.moe.shared_gate=true"}) - linear({}),
            3 * (3 * 64 * (72 - 32) + 64));
  const int64_t expert_layer = 64 * 128 + 64 * 64 + 64 * 8 + 3 * 64 * 32 * 3;
  EXPECT_EQ(linear({"model.mtp.depth=1"}) - linear({}), expert_layer + 2 * 64 * 64 + 1000 * 64);
  const auto flops = [](const std::vector<std::string>& overrides) {
    return model_flops_per_token(plan_config(overrides).model, 128);
  };
  // Of 128 tokens, those at 0..31 see on average 16, the others 32.
  const double seen = (32.0 * 16 + 96 * 32) / 128;
  EXPECT_DOUBLE_EQ(flops({}) - flops({"model.sliding_window=32", "model.sliding_layers=[1]"}),
                   6.0 * 64 * 2 * (64 - seen));
  EXPECT_DOUBLE_EQ(flops(mla), 6.0 * static_cast<double>(linear(mla)) + 6.0 * 4 * 64 * 4 * (24 + 12));
}

TEST(Plan, counts_arithmetic_of_a_step) {
  const Plan plan = make_plan(plan_config({"train.micro_batch=3"}), false);
  EXPECT_EQ(plan.tokens_per_step, 12 * 128);
  EXPECT_EQ(plan.micro_batches, 4);
  EXPECT_EQ(plan.flops_per_token, model_flops_per_token(plan.config.model, 128));
  EXPECT_EQ(plan.flops_per_step(), 12 * 128 * plan.flops_per_token);
}

TEST(Plan, state_follows_the_optimizer) {
  const auto held = [](const std::vector<std::string>& overrides) {
    return make_plan(plan_config(overrides), false).memory.largest;
  };
  const Plan plan = make_plan(plan_config(), false);
  const int64_t router = 3 * 8 * 64, others = plan.total_parameters - router;
  const MemoryByClass usual = plan.memory.largest;
  EXPECT_EQ(usual.weights_bytes, 2 * others + 4 * router);
  EXPECT_EQ(usual.gradients_bytes, usual.weights_bytes);
  EXPECT_EQ(usual.master_bytes, 4 * others);
  EXPECT_EQ(usual.moments_bytes, 8 * plan.total_parameters);
  EXPECT_EQ(held({"optimizer.state_dtype=bf16"}).moments_bytes, 4 * others + 8 * router);
  EXPECT_EQ(held({"optimizer.master_weights=false"}).master_bytes, 0);
  const MemoryByClass fp32 = held({"train.precision=fp32"});
  EXPECT_EQ(fp32.master_bytes, 0);
  EXPECT_EQ(fp32.weights_bytes, 4 * plan.total_parameters);
  // A selection bias is a weight without gradient and moments.
  const MemoryByClass biased = held({"train.precision=fp32", "model.moe.balance.bias_rate=0.001"});
  EXPECT_EQ(biased.weights_bytes, fp32.weights_bytes + 3 * 8 * 4);
  EXPECT_EQ(biased.gradients_bytes, fp32.gradients_bytes);
}

TEST(Plan, two_micro_batches_in_turns_are_held_as_one_of_twice_the_size) {
  const auto peak = [](const std::string& micro_batch, const std::string& pairs) {
    return make_plan(plan_config({"train.batch=4", "train.micro_batch=" + micro_batch, "train.recompute=none",
                                  "parallel.ep_pairs=" + pairs}),
                     false)
        .memory.peak_bytes();
  };
  EXPECT_EQ(peak("1", "true"), peak("2", "false"));
  EXPECT_GT(peak("1", "true"), peak("1", "false"));
}

TEST(Plan, ranks_hold_what_the_zero_stage_leaves_them) {
  const auto held = [](const std::string& stage) {
    return make_plan(plan_config({"train.precision=fp32", "parallel.fsdp=4", "parallel.bucket_mb=0.001",
                                  "parallel.zero_stage=" + stage}),
                     false)
        .memory.largest;
  };
  const MemoryByClass none = held("0"), one = held("1"), two = held("2"), three = held("3");
  const auto near = [](int64_t found, int64_t expected) {
    return std::abs(found - expected) <= 4 * 100;  // each of fewer than 100 parameters is rounded up
  };
  EXPECT_EQ(none.gradients_bytes, none.weights_bytes);
  EXPECT_TRUE(near(one.moments_bytes, none.moments_bytes / 4)) << one.moments_bytes;
  EXPECT_EQ(one.gradients_bytes, none.gradients_bytes);
  EXPECT_TRUE(near(two.gradients_bytes, none.gradients_bytes / 4 + 2000)) << two.gradients_bytes;
  EXPECT_EQ(two.weights_bytes, none.weights_bytes);
  EXPECT_EQ(three.gradients_bytes, two.gradients_bytes);
  const auto decoder = moe::make_decoder(plan_config({}).model);
  int64_t outside = 0;
  for (const nn::Param& param : decoder->params().params())
    if (!param.spec.name.starts_with("layers.")) outside += 4 * param.spec.num_elements();
  const int64_t blocks = none.weights_bytes - outside;
  // A quarter of the blocks, and two blocks of the three that have experts.
  EXPECT_GT(three.weights_bytes, outside + blocks / 4 + blocks / 2);
  EXPECT_LT(three.weights_bytes, outside + blocks / 4 + 2 * (blocks / 3));
}

TEST(Plan, ranks_that_share_sequences_hold_and_send_their_part) {
  const auto planned = [](const std::vector<std::string>& overrides) {
    return make_plan(plan_config(overrides), false);
  };
  const Plan one = planned({}), four = planned({"parallel.cp=4"});
  EXPECT_EQ(4 * four.memory.largest.activations_bytes, one.memory.largest.activations_bytes);
  EXPECT_EQ(four.memory.largest.weights_bytes, one.memory.largest.weights_bytes);
  // What a stage of ZeRO splits lies over them too; each of fewer than 100 parameters is rounded up.
  const MemoryByClass shared = planned({"parallel.cp=4", "parallel.zero_stage=1"}).memory.largest;
  EXPECT_LE(std::abs(4 * shared.moments_bytes - one.memory.largest.moments_bytes), 8 * 4 * 100);
  // Three quarters of a key and a value head pair of 16 for 12 sequences of 128 tokens, in four layers: bf16
  // forward and backward, fp32 gradients; once more forward with recomputation.
  const int64_t values = 12 * 128 * 3 / 4 * 2 * (16 + 16) * 4;
  EXPECT_EQ(one.context_bytes_per_pass, 0);
  EXPECT_EQ(four.context_bytes_per_pass, values * (2 * 2 + 4));
  EXPECT_EQ(planned({"parallel.cp=4", "train.recompute=full"}).context_bytes_per_pass, values * (3 * 2 + 4));
  EXPECT_EQ(planned({"parallel.cp=4", "parallel.tp=2"}).context_bytes_per_pass, values / 2 * (2 * 2 + 4));
  EXPECT_THAT(to_text(four), HasSubstr("per pass by each of 4 ranks (parallel.cp)"));
  EXPECT_THAT(to_text(one), Not(HasSubstr("keys and values sent")));
}

TEST(Plan, background_checkpoints_take_host_memory) {
  const Plan often = make_plan(plan_config({"checkpoint.every=10"}), false);
  const MemoryByClass& held = often.memory.largest;
  EXPECT_EQ(often.memory.snapshot_bytes, held.weights_bytes + held.master_bytes + held.moments_bytes);
  EXPECT_EQ(often.needed_bytes(), often.memory.peak_bytes() + often.memory.snapshot_bytes);
  // At the end no step runs beside it.
  const Plan once = make_plan(plan_config({"train.batch=1"}), false);
  EXPECT_LT(once.memory.peak_bytes(), 2 * once.memory.snapshot_bytes);
  EXPECT_EQ(once.needed_bytes(), 2 * once.memory.snapshot_bytes);
  EXPECT_EQ(make_plan(plan_config({"checkpoint.background=false"}), false).memory.snapshot_bytes, 0);
  EXPECT_EQ(make_plan(plan_config({"checkpoint.at_end=false"}), false).memory.snapshot_bytes, 0);
  const Plan device = make_plan(plan_config({"checkpoint.every=10"}), true);
  EXPECT_EQ(device.needed_bytes(), device.memory.peak_bytes());
}

TEST(Plan, json_and_text_agree_with_it) {
  const Plan plan = make_plan(plan_config({"train.micro_batch=3"}), true);
  const nlohmann::ordered_json json = to_json(plan);
  int64_t sum = 0;
  for (const auto& [name, bytes] : json["at_peak"].items()) sum += bytes.get<int64_t>();
  EXPECT_EQ(sum, plan.memory.peak_bytes());
  EXPECT_EQ(json["peak_bytes"], plan.memory.peak_bytes());
  EXPECT_EQ(json["parameters"]["router"], 3 * 8 * 64);
  EXPECT_THAT(to_text(plan),
              AllOf(HasSubstr("4 passes of 3 sequences of 128 tokens\n"),
                    HasSubstr("\nmemory on cuda, bf16\n"), HasSubstr("in the " + plan.memory.peak_moment)));
}

TEST(Plan, savings_hold_what_they_promise) {
  const Plan plan = make_plan(plan_config({"train.sequence=1024", "checkpoint.every=10"}), false);
  const std::vector<Saving> savings = possible_savings(plan, plan.needed_bytes() / 2);
  std::vector<std::string> fields;
  for (const Saving& saving : savings) {
    fields.push_back(saving.field);
    const Plan changed = make_plan(
        plan_config({"train.sequence=1024", "checkpoint.every=10", saving.field + "=" + saving.value}),
        false);
    EXPECT_EQ(changed.needed_bytes(), saving.needed_bytes) << saving.field;
    EXPECT_LT(saving.needed_bytes, plan.needed_bytes());
    if (saving.field == "train.micro_batch") {
      EXPECT_LE(saving.needed_bytes, plan.needed_bytes() / 2);
    }
  }
  EXPECT_THAT(fields, testing::ElementsAre("train.micro_batch", "train.recompute", "train.recompute",
                                           "optimizer.state_dtype", "optimizer.state_dtype",
                                           "optimizer.master_weights", "checkpoint.background"));
  const Plan least =
      make_plan(plan_config({"train.batch=1", "train.recompute=full", "optimizer.state_dtype=int8",
                             "optimizer.master_weights=false", "checkpoint.background=false"}),
                false);
  EXPECT_TRUE(possible_savings(least, 0).empty());
}

TEST(Plan, refuses_a_run_that_does_not_fit) {
  const Plan plan = make_plan(plan_config({"train.batch=4096"}), true);
  const int64_t needed = plan.needed_bytes();
  EXPECT_NO_THROW(check_memory_fits(plan, needed));
  EXPECT_NO_THROW(check_memory_fits(plan, needed / 10 * 9 + 10));  // the prediction may be that much too high
  EXPECT_THAT(
      message_of<UserError>([&] { check_memory_fits(plan, kGiB); }),
      AllOf(HasSubstr("the run needs about "), HasSubstr(" of GPU memory (weights "),
            HasSubstr(", activations "), HasSubstr(", but 1.00 GiB are available; set train.micro_batch = "),
            HasSubstr("train.recompute = \"full\" (then "), HasSubstr("model.layers"),
            Not(HasSubstr("train.precision"))));
}

TEST(Plan, explains_an_allocation_that_failed) {
  EXPECT_THAT(
      out_of_memory_message(make_plan(plan_config({"train.batch=4096"}), false), "tried to allocate 3 GiB"),
      AllOf(HasSubstr("out of memory: tried to allocate 3 GiB\nthe run was planned to need "),
            HasSubstr("; copies for background checkpoints "),
            HasSubstr("set train.micro_batch = 1024 (then "),
            HasSubstr("train.recompute = \"selective\" (then ")));
}

}  // namespace
}  // namespace moebius::train
