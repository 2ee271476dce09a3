#include "train/plan.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/units.h"
#include "moe/moe_feed_forward.h"
#include "parallel/layout.h"
#include "parallel/stage_link.h"
#include "train/flops.h"
#include "train/recompute_choice.h"
#include "train/step.h"
#include "tune/pipeline_schedule.h"

namespace moebius::train {
namespace {

struct ClassRow {
  const char* name;
  const char* key;
  int64_t MemoryByClass::*bytes;
};
constexpr ClassRow kClasses[] = {
    {"weights", "weights_bytes", &MemoryByClass::weights_bytes},
    {"fp32 master weights", "master_bytes", &MemoryByClass::master_bytes},
    {"optimizer moments", "moments_bytes", &MemoryByClass::moments_bytes},
    {"gradients", "gradients_bytes", &MemoryByClass::gradients_bytes},
    {"activations", "activations_bytes", &MemoryByClass::activations_bytes},
    {"workspace", "workspace_bytes", &MemoryByClass::workspace_bytes},
    {"inputs", "input_bytes", &MemoryByClass::input_bytes},
};

std::string row(const std::string& name, const std::string& value, const std::string& second = {}) {
  char text[256];
  std::snprintf(text, sizeof text, "  %-24s%12s%14s", name.c_str(), value.c_str(), second.c_str());
  std::string line = text;
  line.erase(line.find_last_not_of(' ') + 1);
  return line + '\n';
}

std::string by_class(const MemoryByClass& memory) {
  std::string text;
  for (const ClassRow& entry : kClasses)
    if (memory.*entry.bytes > 0)
      text += concat(text.empty() ? "" : ", ", entry.name, ' ', format_bytes(memory.*entry.bytes));
  return text;
}

std::string counted(int64_t count, const char* what, const char* ending = "s") {
  return concat(count, ' ', what, count == 1 ? "" : ending);
}

// Sequences per pass, a divisor of the batch, with which the run fits; 1 when none does.
int64_t smaller_micro_batch(const Plan& plan, int64_t available_bytes) {
  config::RunConfig config = plan.config;
  std::set<int64_t, std::greater<>> divisors;
  for (int64_t i = 1; i * i <= config.train.batch; ++i)
    if (config.train.batch % i == 0) divisors.insert({i, config.train.batch / i});
  for (const int64_t micro : divisors) {
    if (micro >= plan.config.train.micro_batch) continue;
    config.train.micro_batch = micro;
    if (make_plan(config, plan.on_cuda).needed_bytes() <= available_bytes) return micro;
  }
  return 1;
}

std::string advice(const Plan& plan, int64_t available_bytes) {
  std::string text;
  for (const Saving& saving : possible_savings(plan, available_bytes))
    text += concat(text.empty() ? "" : ", ", saving.field, " = ", saving.value, " (then ",
                   format_bytes(saving.needed_bytes), ")");
  const char* smaller = "make the model smaller (model.layers, model.dim, model.moe.experts)";
  return text.empty() ? smaller : concat("set ", text, ", or ", smaller);
}

std::string needs(const Plan& plan) {
  return concat(
      format_bytes(plan.needed_bytes()), " of ", plan.on_cuda ? "GPU memory" : "memory", " (",
      by_class(plan.memory.at_peak), ", in the ", plan.memory.peak_moment,
      plan.on_cuda || plan.memory.snapshot_bytes == 0
          ? std::string()
          : concat("; copies for background checkpoints ", format_bytes(plan.memory.snapshot_bytes)),
      ")");
}

// What each way to recompute comes to; the run's own is marked.
std::string recompute_text(const Plan& plan) {
  const config::TrainSection& train = plan.config.train;
  std::string text = "recomputation, train.recompute\n";
  text += row("", "activations", "needed");
  const std::vector<RecomputeOption> options = recompute_options(plan.config, plan.on_cuda);
  const double all = static_cast<double>(options[0].held_bytes);
  for (const RecomputeOption& option : options) {
    char costs[96];
    std::snprintf(costs, sizeof costs, "  %+5.1f %% activations, %+.1f %% FLOPs",
                  100 * (static_cast<double>(option.held_bytes) / all - 1),
                  100 * option.extra_flops_per_token / plan.flops_per_token);
    const bool is_own = option.recompute == train.recompute && option.layers == train.recompute_layers;
    std::string line =
        row(option.layers == 0 ? option.recompute : concat(option.recompute, ", ", option.layers, " layers"),
            format_bytes(option.held_bytes), format_bytes(option.needed_bytes));
    line.pop_back();
    text += concat(line, costs, is_own ? "  <- this run" : "", "\n");
  }
  return text;
}

// A run whose memory is at least that of the fullest stage of a pipeline: as many layers as that has, between
// embedding and output layer, and a micro-batch of all that a stage holds at a time.
config::RunConfig fullest_stage(const config::RunConfig& config) {
  const int64_t stages = config.parallel.pp;
  if (stages == 1 && config.parallel.ep_pairs) {
    // Two of them are held at a time.
    config::RunConfig pairs = config;
    pairs.train.micro_batch = std::min(2 * config.train.micro_batch, config.train.batch);
    return pairs;
  }
  if (stages == 1) return config;
  const std::vector<nn::LayerRange> pieces = parallel::layers_of_pieces(config);
  config::RunConfig own = config;
  own.model.layers = 0;
  for (int64_t stage = 0; stage < stages; ++stage) {
    int64_t layers = 0;
    std::vector<int64_t> dense;
    for (size_t piece = static_cast<size_t>(stage); piece < pieces.size();
         piece += static_cast<size_t>(stages))
      for (int64_t layer = pieces[piece].begin; layer < pieces[piece].end; ++layer, ++layers)
        if (std::ranges::find(config.model.moe.dense_layers, layer) != config.model.moe.dense_layers.end())
          dense.push_back(layers);
    if (layers <= own.model.layers) continue;
    own.model.layers = layers;
    own.model.moe.dense_layers = dense;
  }
  const int64_t chunks = config.parallel.pp_chunks;
  const int64_t count = config.train.batch / config.train.micro_batch;
  const tune::PipelineSchedule schedule = tune::make_schedule(
      tune::pipeline_kind(config.parallel.pp_schedule), static_cast<int>(stages), static_cast<int>(chunks),
      chunks > 1 ? (count + stages - 1) / stages * stages : count);
  own.train.micro_batch *= (schedule.most_held(0) + chunks - 1) / chunks;
  own.train.batch = own.train.micro_batch;
  own.parallel.pp = own.parallel.pp_chunks = 1;
  own.parallel.pp_schedule = "1f1b";
  own.parallel.pp_layers.clear();
  return own;
}

// What parallel/ring_attention.h sends, of config.train.micro_batch sequences.
int64_t context_bytes(const config::RunConfig& config) {
  const config::ModelConfig& model = config.model;
  const int64_t ranks = config.parallel.cp, bytes = config.train.precision == "bf16" ? 2 : 4;
  if (ranks == 1) return 0;
  const int64_t heads = (model.is_latent() ? model.heads : model.kv_heads) / config.parallel.tp;
  const int64_t width = heads * (model.query_dim() + model.value_dim());
  const int64_t values = config.train.micro_batch * config.train.sequence / ranks * (ranks - 1) * width;
  int64_t sent = 0;
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer) {
    const bool twice = nn::recompute_of_layer(recompute_of(config.train.recompute),
                                              config.train.recompute_layers, layer) == nn::Recompute::full;
    sent += values * ((twice ? 3 : 2) * bytes + 4);
  }
  return sent;
}

std::unique_ptr<nn::Decoder> split_decoder(const config::RunConfig& config) {
  std::unique_ptr<nn::Decoder> decoder = moe::make_decoder(config.model);
  const auto first_of = [](int64_t size) { return nn::AxisPlace{static_cast<int>(size), 0}; };
  const int64_t side = parallel::grid_side(config.parallel);
  if (side > 1) {
    parallel::check_grid(config);
    decoder->params().split({.ep = first_of(side), .tp = first_of(side), .grid = first_of(side)});
  } else {
    decoder->params().split({.ep = first_of(config.parallel.ep), .tp = first_of(config.parallel.tp)});
  }
  return decoder;
}

nlohmann::ordered_json class_json(const MemoryByClass& memory) {
  nlohmann::ordered_json json;
  for (const ClassRow& entry : kClasses) json[entry.key] = memory.*entry.bytes;
  return json;
}

}  // namespace

int64_t Plan::needed_bytes() const {
  const int64_t peak = memory.peak_bytes();
  if (on_cuda) return peak;
  if (memory.snapshot_beside_step) return peak + memory.snapshot_bytes;
  const MemoryByClass& held = memory.largest;  // between steps
  return std::max(peak, held.weights_bytes + held.master_bytes + held.moments_bytes + memory.snapshot_bytes);
}

Plan make_plan(const config::RunConfig& config, bool on_cuda) {
  MOEBIUS_CHECK_GE(config.model.vocab, 1, "a plan needs the size of the vocabulary");
  const std::unique_ptr<nn::Decoder> decoder = split_decoder(config);
  const nn::ParamTable& params = decoder->params();
  Plan plan;
  plan.config = config;
  if (plan.config.train.micro_batch == 0) plan.config.train.micro_batch = config.train.batch;
  plan.on_cuda = on_cuda;
  for (const nn::ParamClass klass : {nn::ParamClass::expert, nn::ParamClass::dense, nn::ParamClass::embedding,
                                     nn::ParamClass::router, nn::ParamClass::norm})
    if (const int64_t count = params.num_elements(klass); count > 0)
      plan.parameters.emplace_back(klass, count);
  plan.total_parameters = params.num_elements();
  const int64_t expert = params.num_elements(nn::ParamClass::expert);
  plan.active_parameters = plan.total_parameters;
  if (expert > 0)
    plan.active_parameters -=
        expert / config.model.moe.experts * (config.model.moe.experts - config.model.moe.top_k);
  plan.flops_per_token = model_flops_per_token(config.model, config.train.sequence);
  if (plan.config.train.recompute == "auto") plan.config.train.recompute = "none";
  plan.recompute_flops_per_token = recompute_flops_per_token(plan.config);
  plan.tokens_per_step = config.train.batch * config.train.sequence;
  plan.micro_batches = config.train.batch / plan.config.train.micro_batch;
  plan.context_bytes_per_pass = context_bytes(plan.config);
  const config::RunConfig stage = fullest_stage(plan.config);
  plan.memory = config.parallel.pp == 1 ? plan_memory(stage, params, on_cuda)
                                        : plan_memory(stage, split_decoder(stage)->params(), on_cuda);
  return plan;
}

std::vector<Saving> possible_savings(const Plan& plan, int64_t available_bytes) {
  std::vector<Saving> savings;
  const auto try_out = [&](const std::string& field, const std::string& value, const auto& change) {
    config::RunConfig config = plan.config;
    change(config);
    const int64_t needed = make_plan(config, plan.on_cuda).needed_bytes();
    if (needed <= plan.needed_bytes() - plan.needed_bytes() / 100) savings.push_back({field, value, needed});
  };
  if (plan.config.train.micro_batch > 1) {
    const int64_t micro = smaller_micro_batch(plan, available_bytes);
    try_out("train.micro_batch", std::to_string(micro),
            [&](config::RunConfig& config) { config.train.micro_batch = micro; });
  }
  for (const char* word : {"selective", "full"})
    if (plan.config.train.recompute == "none" || (plan.config.train.recompute == "selective" && *word == 'f'))
      try_out("train.recompute", concat('"', word, '"'), [&](config::RunConfig& config) {
        config.train.recompute = word;
        config.train.recompute_layers = 0;
      });
  for (const char* word : {"bf16", "int8"})
    if (plan.config.optimizer.state_dtype != "int8")
      try_out("optimizer.state_dtype", concat('"', word, '"'),
              [&](config::RunConfig& config) { config.optimizer.state_dtype = word; });
  try_out("optimizer.master_weights", "false",
          [](config::RunConfig& config) { config.optimizer.master_weights = false; });
  try_out("train.precision", "\"bf16\"", [](config::RunConfig& config) { config.train.precision = "bf16"; });
  try_out("checkpoint.background", "false",
          [](config::RunConfig& config) { config.checkpoint.background = false; });
  return savings;
}

std::string to_text(const Plan& plan) {
  const config::TrainSection& train = plan.config.train;
  std::string text = "parameters\n";
  for (const auto& [klass, count] : plan.parameters)
    text += row(nn::name_of(klass), format_count(static_cast<double>(count)));
  text += row("total", format_count(static_cast<double>(plan.total_parameters)));
  text += row("active per token", format_count(static_cast<double>(plan.active_parameters)));
  text += "arithmetic, forward and backward\n";
  text += row("FLOPs per token", format_count(plan.flops_per_token));
  text += row("tokens per step", std::to_string(plan.tokens_per_step),
              concat("  ", counted(plan.micro_batches, "pass", "es"), " of ",
                     counted(train.micro_batch, "sequence"), " of ", counted(train.sequence, "token")));
  text += row("FLOPs per step", format_count(plan.flops_per_step()));
  if (plan.context_bytes_per_pass > 0)
    text += row("keys and values sent", format_bytes(plan.context_bytes_per_pass),
                concat("  per pass by each of ", plan.config.parallel.cp, " ranks (parallel.cp)"));
  text += recompute_text(plan);
  text += concat("memory on ", plan.on_cuda ? "cuda" : "cpu", ", ", train.precision, "\n");
  text += row("", "at the peak", "at most");
  for (const ClassRow& entry : kClasses)
    if (plan.memory.largest.*entry.bytes > 0)
      text += row(entry.name, format_bytes(plan.memory.at_peak.*entry.bytes),
                  format_bytes(plan.memory.largest.*entry.bytes));
  text += row("peak of a step", format_bytes(plan.memory.peak_bytes()),
              concat("  in the ", plan.memory.peak_moment));
  if (plan.memory.snapshot_bytes > 0)
    text += row("background checkpoints", format_bytes(plan.memory.snapshot_bytes),
                plan.on_cuda                       ? "  of host memory"
                : plan.memory.snapshot_beside_step ? ""
                                                   : "  after the last step");
  return text;
}

nlohmann::ordered_json to_json(const Plan& plan) {
  nlohmann::ordered_json json;
  json["device"] = plan.on_cuda ? "cuda" : "cpu";
  for (const auto& [klass, count] : plan.parameters) json["parameters"][nn::name_of(klass)] = count;
  json["total_parameters"] = plan.total_parameters;
  json["active_parameters"] = plan.active_parameters;
  json["flops_per_token"] = plan.flops_per_token;
  json["flops_per_step"] = plan.flops_per_step();
  json["recompute"] = plan.config.train.recompute;
  json["recompute_layers"] = plan.config.train.recompute_layers;
  json["recompute_flops_per_token"] = plan.recompute_flops_per_token;
  json["recompute_options"] = nlohmann::ordered_json::array();
  for (const RecomputeOption& option : recompute_options(plan.config, plan.on_cuda))
    json["recompute_options"].push_back({{"recompute", option.recompute},
                                         {"recompute_layers", option.layers},
                                         {"activations_bytes", option.held_bytes},
                                         {"needed_bytes", option.needed_bytes},
                                         {"recompute_flops_per_token", option.extra_flops_per_token}});
  json["tokens_per_step"] = plan.tokens_per_step;
  json["micro_batches"] = plan.micro_batches;
  if (plan.context_bytes_per_pass > 0) json["context_bytes_per_pass"] = plan.context_bytes_per_pass;
  json["precision"] = plan.config.train.precision;
  json["peak_bytes"] = plan.memory.peak_bytes();
  json["peak_moment"] = plan.memory.peak_moment;
  json["at_peak"] = class_json(plan.memory.at_peak);
  json["largest"] = class_json(plan.memory.largest);
  json["snapshot_bytes"] = plan.memory.snapshot_bytes;
  json["needed_bytes"] = plan.needed_bytes();
  return json;
}

void check_memory_fits(const Plan& plan, int64_t available_bytes) {
  if (0.9 * static_cast<double>(plan.needed_bytes()) <= static_cast<double>(available_bytes)) return;
  throw_user_error("the run needs about ", needs(plan), ", but ", format_bytes(available_bytes),
                   " are available; ", advice(plan, available_bytes));
}

std::string out_of_memory_message(const Plan& plan, const std::string& what) {
  return concat("out of memory: ", what, "\nthe run was planned to need ", needs(plan), "; ",
                advice(plan, plan.needed_bytes() / 2));
}

}  // namespace moebius::train
