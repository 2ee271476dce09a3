#include "config/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "base/test_folder.h"

namespace moebius::config {
namespace {

RunConfig valid() {
  RunConfig c;
  c.data.files = {"a.txt"};
  c.model.moe.experts = 8;
  return c;
}

struct Broken {
  std::function<void(RunConfig&)> change;
  std::string message;
};

class Validate : public ::testing::TestWithParam<Broken> {};

TEST_P(Validate, says_what_is_wrong_and_the_way_out) {
  RunConfig c = valid();
  EXPECT_NO_THROW(validate(c));
  GetParam().change(c);
  EXPECT_EQ(message_of<UserError>([&] { validate(c); }), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, Validate,
    ::testing::Values(
        Broken{
            [](RunConfig& c) { c.model.kv_heads = 3; },
            "model.heads is 4, not a multiple of model.kv_heads (3); set model.kv_heads to a divisor of 4"},
        Broken{
            [](RunConfig& c) { c.model.kv_heads = 8; },
            "model.heads is 4, not a multiple of model.kv_heads (8); set model.kv_heads to a divisor of 4"},
        Broken{
            [](RunConfig& c) { c.model.dim = 130; },
            "model.dim is 130, not a multiple of model.heads (4); change one of them, or set model.head_dim"},
        Broken{
            [](RunConfig& c) { c.model.dim = 12; },
            "model.head_dim is 0, which makes it dim / heads = 3; rotary positions need an even number, set "
            "model.head_dim or change model.heads"},
        Broken{[](RunConfig& c) { c.model.head_dim = 33; },
               "model.head_dim is 33; rotary positions need an even number, use 34 or 32"},
        Broken{[](RunConfig& c) { c.model.rotary_dim = 7; },
               "model.rotary_dim is 7; rotary positions need an even number, use 8 or 6"},
        Broken{[](RunConfig& c) { c.model.rotary_dim = 34; },
               "model.rotary_dim is 34, but a head has 32 channels; lower it, or set it to 0 to rotate all"},
        Broken{[](RunConfig& c) {
                 c.model.sliding_window = 16;
                 c.model.sliding_layers = {1, 4};
               },
               "model.sliding_layers names layer 4, but model.layers is 4; layers count from 0 to 3"},
        Broken{[](RunConfig& c) { c.model.sliding_layers = {1}; },
               "model.sliding_layers names 1 layer(s), but model.sliding_window is 0; set the window, or "
               "remove the list"},
        Broken{[](RunConfig& c) {
                 c.model.attention = "mla";
                 c.model.mla.rope_dim = 5;
               },
               "model.mla.rope_dim is 5; rotary positions need an even number, use 6 or 4"},
        Broken{[](RunConfig& c) {
                 c.model.attention = "mla";
                 c.model.qk_norm = "head";
               },
               "model.qk_norm is 'head', but model.attention = 'mla' has norms of its own, on the latents; "
               "set it to 'none'"},
        Broken{[](RunConfig& c) {
                 c.model.attention = "mla";
                 c.model.rotary_dim = 8;
               },
               "model.rotary_dim is 8, but model.attention = 'mla' rotates model.mla.rope_dim channels; set "
               "it to 0"},
        Broken{[](RunConfig& c) {
                 c.model.attention = "mla";
                 c.model.sliding_window = 8;
               },
               "model.sliding_window is 8, but model.attention = 'mla' has no window; set it to 0 and remove "
               "model.sliding_layers"},
        Broken{[](RunConfig& c) {
                 c.model.attention = "mla";
                 c.model.attention_sinks = true;
               },
               "model.attention_sinks is true, but model.attention = 'mla' has no sinks; set it to false"},
        Broken{[](RunConfig& c) {
                 c.model.rope.scaling = "linear";
                 c.model.rope.factor = 0.5;
               },
               "model.rope.factor is 0.5, but model.rope.scaling = 'linear' stretches the context; use 1 or "
               "more, or scaling = 'none'"},
        Broken{[](RunConfig& c) {
                 c.model.rope.scaling = "dynamic";
                 c.model.rope.factor = 2;
               },
               "model.rope.original_context is 0, but model.rope.scaling = 'dynamic' needs it; set it to the "
               "context before stretching, for example 4096"},
        Broken{[](RunConfig& c) {
                 c.model.rope.scaling = "yarn";
                 c.model.rope.original_context = 4096;
                 c.model.rope.beta_fast = 0.5;
               },
               "model.rope.beta_fast is 0.5 and model.rope.beta_slow is 1; they must be above 0, beta_fast "
               "not below beta_slow (32 and 1 are usual)"},
        Broken{[](RunConfig& c) {
                 c.model.rope.scaling = "llama3";
                 c.model.rope.original_context = 4096;
                 c.model.rope.high_freq_factor = 1;
               },
               "model.rope.low_freq_factor is 1 and model.rope.high_freq_factor is 1; they must be above 0, "
               "the second above the first (1 and 4 are usual)"},
        Broken{[](RunConfig& c) { c.model.moe.groups = 3; },
               "model.moe.experts is 8, not a multiple of model.moe.groups (3); set model.moe.groups to a "
               "divisor of 8"},
        Broken{[](RunConfig& c) { c.model.moe.top_groups = 2; },
               "model.moe.top_groups is 2, but there are only 1 groups (model.moe.groups); lower it"},
        Broken{[](RunConfig& c) {
                 c.model.moe.groups = 4;
                 c.model.moe.top_k = 3;
               },
               "model.moe.top_k is 3, but 1 group(s) (model.moe.top_groups) have only 2 experts; lower "
               "model.moe.top_k or raise model.moe.top_groups"},
        Broken{[](RunConfig& c) {
                 c.model.moe.groups = 8;
                 c.model.moe.top_groups = 4;
                 c.model.moe.group_score = "top2_sum";
               },
               "model.moe.group_score is 'top2_sum', but a group has one expert; lower model.moe.groups, or "
               "use 'max'"},
        Broken{[](RunConfig& c) { c.model.moe.shared_gate = true; },
               "model.moe.shared_gate is true, but model.moe.shared_experts is 0; set it to 1, or "
               "shared_gate to false"},
        Broken{[](RunConfig& c) { c.model.moe.shared_dim = 64; },
               "model.moe.shared_dim is 64, but model.moe.shared_experts is 0; set it to 1, or shared_dim to "
               "0"},
        Broken{[](RunConfig& c) {
                 c.model.moe.activation = "clamped_swiglu";
                 c.model.moe.activation_limit = 0;
               },
               "model.moe.activation_limit is 0, which cuts the experts off; use a value above 0"},
        Broken{[](RunConfig& c) { c.model.moe.top_k = 9; },
               "model.moe.top_k is 9, but there are only 8 experts (model.moe.experts); lower "
               "model.moe.top_k or raise "
               "model.moe.experts"},
        Broken{[](RunConfig& c) {
                 c.model.moe.dense_layers = {0, 4};
               },
               "model.moe.dense_layers names layer 4, but model.layers is 4; layers count from 0 to 3"},
        Broken{[](RunConfig& c) {
                 c.model.moe.dense_layers = {1, 0, 1};
               },
               "model.moe.dense_layers names layer 1 twice; name each layer once"},
        Broken{[](RunConfig& c) {
                 c.model.moe.score = "sigmoid";
                 c.model.moe.softmax_order = "after_topk";
               },
               "model.moe.softmax_order is 'after_topk', but model.moe.score is 'sigmoid', which has no "
               "softmax; remove "
               "model.moe.softmax_order or set model.moe.score to 'softmax'"},
        Broken{[](RunConfig& c) { c.model.moe.weight_scale = 0; },
               "model.moe.weight_scale is 0, which cuts the experts off; use a value above 0"},
        Broken{[](RunConfig& c) { c.model.moe.capacity_factor = 0.001; },
               "model.moe.capacity_factor is 0.001, which drops nearly every token; use 1 or more, or 0 to "
               "never drop"},
        Broken{[](RunConfig& c) { c.data.files.clear(); },
               "data.files is empty; name at least one text file, or set data.synthetic = true for random "
               "tokens"},
        Broken{[](RunConfig& c) {
                 c.data.files.clear();
                 c.data.synthetic = true;
               },
               "model.vocab is 0, but data.synthetic has no tokenizer to ask; set model.vocab, for example "
               "to 32000"},
        Broken{[](RunConfig& c) {
                 c.data.synthetic = true;
                 c.model.vocab = 100;
               },
               "data.synthetic is true, but data.files names 1 file(s) that would not be read; remove one of "
               "the two"},
        Broken{[](RunConfig& c) {
                 c.data.weights = {1, 2};
               },
               "data.weights has 2 value(s) for 1 file(s) in data.files; give one weight per file, or none"},
        Broken{[](RunConfig& c) { c.data.weights = {0}; },
               "data.weights are all 0, so no source would be read; raise one of them"},
        Broken{[](RunConfig& c) { c.data.batching = "packed"; },
               "data.batching is 'packed'; use window, pad, three-buckets, buckets:N, edges:A,B,..., pack or "
               "balanced"},
        Broken{[](RunConfig& c) { c.data.batching = "buckets:0"; },
               "data.batching is 'buckets:0', but the number of buckets must be 1 to 1024; use for example "
               "buckets:8, or edges:127,256 for edges of your own"},
        Broken{
            [](RunConfig& c) { c.data.batching = "edges:64,32"; },
            "data.batching is 'edges:64,32', but its edges are out of order: 32 comes after 64; write them "
            "rising, each once"},
        Broken{[](RunConfig& c) { c.data.batching = "edges:64,,128"; },
               "data.batching is 'edges:64,,128', but '' is no length; edges are whole numbers from 1, like "
               "edges:127,256"},
        Broken{[](RunConfig& c) { c.data.batching = "edges:64,256"; },
               "data.batching is 'edges:64,256', but edge 256 is not below train.sequence (256), the longest "
               "that a row can be; leave it out"},
        Broken{[](RunConfig& c) {
                 c.data.files.clear();
                 c.data.synthetic = true;
                 c.model.vocab = 100;
                 c.data.batching = "pack";
               },
               "data.batching is 'pack', but data.synthetic has no documents; use 'window', or text in "
               "data.files"},
        Broken{[](RunConfig& c) { c.data.files = {""}; },
               "data.files[0] is empty; name a file or remove the entry"},
        Broken{
            [](RunConfig& c) { c.data.tokenizer = ""; },
            "data.tokenizer is empty; use 'bytes' or the path of a SentencePiece model or a tokenizer.json"},
        Broken{[](RunConfig& c) { c.model.vocab = 200; },
               "model.vocab is 200, fewer than the 256 bytes of data.tokenizer = 'bytes'; set model.vocab = "
               "0 to let the "
               "tokenizer decide"},
        Broken{[](RunConfig& c) { c.train.micro_batch = 3; },
               "train.batch is 8, not a multiple of train.micro_batch (3); set train.micro_batch to a "
               "divisor of 8, or to "
               "0 for all at once"},
        Broken{[](RunConfig& c) { c.schedule.warmup_steps = 1001; },
               "schedule.warmup_steps is 1001, but train.steps is 1000; the warm-up must fit in the run, "
               "lower it"},
        Broken{[](RunConfig& c) {
                 c.schedule.kind = "wsd";
                 c.schedule.warmup_steps = 900;
               },
               "schedule.decay_fraction is 0.2 of 1000 steps, which overlaps the 900 steps of warm-up; lower "
               "it or "
               "schedule.warmup_steps"},
        Broken{[](RunConfig& c) { c.optimizer.beta1 = 1; },
               "optimizer.beta1 is 1, so the first moment would never move; use 0.9, or less than 1"},
        Broken{[](RunConfig& c) { c.optimizer.beta2 = 1; },
               "optimizer.beta2 is 1, so the second moment would never move; use 0.95, or less than 1"},
        Broken{[](RunConfig& c) {
                 c.train.eval_every = 100;
                 c.data.validation_fraction = 0;
               },
               "train.eval_every is 100, but there is no validation text; raise data.validation_fraction or "
               "name "
               "data.validation_file"}));

TEST(ValidateRun, all_broken_rules_are_reported) {
  RunConfig c = valid();
  c.model.head_dim = 33;
  c.optimizer.beta1 = 1;
  const auto text = message_of<UserError>([&] { validate(c); });
  EXPECT_THAT(text, ::testing::HasSubstr("model.head_dim is 33"));
  EXPECT_THAT(text, ::testing::HasSubstr("\noptimizer.beta1 is 1"));
}

TEST(ValidateRun, quantisation_that_would_do_nothing_is_an_error) {
  const auto message = [](const std::function<void(QuantConfig&)>& change) {
    RunConfig c = valid();
    change(c.quant);
    EXPECT_NO_THROW(validate(c)) << "it is off";
    c.quant.scheme = "int8";
    return message_of<UserError>([&] { validate(c); });
  };
  EXPECT_EQ(message([](QuantConfig& q) { q.activation_bits = 1; }),
            "quant.activation_bits is 1; symmetric codes need 2 or more, 0 leaves activations as they are");
  EXPECT_EQ(message([](QuantConfig& q) { q.classes = {"router"}; }),
            "quant.classes names 'router'; it may name 'attention', 'ffn' and 'experts'");
  EXPECT_THAT(message([](QuantConfig& q) { q.classes.clear(); }),
              ::testing::HasSubstr("nothing would be quantised"));
  EXPECT_EQ(message([](QuantConfig& q) { q.start_step = 1001; }),
            "quant.start_step is 1001, but train.steps is 1000; no step would be quantised, lower it");
  EXPECT_EQ(message([](QuantConfig& q) {
              q.compensation = "uniform";
              q.share = 0;
            }),
            "quant.share is 0, so quant.compensation = 'uniform' would do nothing; raise it, or set "
            "quant.compensation = 'none'");
}

TEST(ValidateRun, dense_models_ignore_the_router) {
  RunConfig c = valid();
  c.model.moe.experts = 0;
  c.model.moe.top_k = 8;
  EXPECT_NO_THROW(validate(c));
}

TEST(ValidateRun, latent_attention_ignores_the_widths_of_other_heads) {
  RunConfig c = valid();
  c.model.attention = "mla";
  c.model.heads = 5;
  c.model.kv_heads = 4;
  EXPECT_NO_THROW(validate(c));
  EXPECT_EQ(c.model.query_dim(), 192);
  EXPECT_EQ(c.model.value_dim(), 128);
  EXPECT_EQ(c.model.rotated_dim(), 64);
}

TEST(ModelConfig, the_window_holds_for_the_layers_that_are_named) {
  ModelConfig model;
  EXPECT_EQ(model.window_of(0), 0);
  model.sliding_window = 16;
  EXPECT_EQ(model.window_of(3), 16);
  model.sliding_layers = {0, 2};
  EXPECT_EQ(model.window_of(2), 16);
  EXPECT_EQ(model.window_of(3), 0);
}

TEST(ValidateRun, the_model_alone_needs_no_data) {
  RunConfig c;
  EXPECT_NO_THROW(validate_model(c.model));
  c.model.heads = 3;
  EXPECT_THROW(validate_model(c.model), UserError);
}

}  // namespace
}  // namespace moebius::config
