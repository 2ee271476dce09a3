#include "cli/cluster_plan.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/concat.h"
#include "base/error.h"
#include "base/units.h"
#include "tune/step_cost.h"

namespace moebius::cli {
namespace {

std::vector<std::pair<const char*, double>> parts_of(const tune::StepCost& cost) {
  return {{"dense products", cost.dense},
          {"attention", cost.attention},
          {"experts", cost.experts},
          {"norms and sums", cost.passes},
          {"exchange within tp", cost.tensor},
          {"tokens to experts", cost.dispatch},
          {"exchange within expert_tp", cost.expert_tensor},
          {"weights gathered", cost.weights},
          {"gradients summed", cost.gradients},
          {"between stages", cost.stages},
          {"idle pipeline", cost.bubble},
          {"optimizer", cost.optimizer}};
}

std::string percent(double share) {
  return format_fixed(100 * share, 1) + " %";
}

std::string text_of(const tune::Choice& choice, double tokens) {
  const tune::StepCost& cost = choice.cost;
  return concat(format_fixed(cost.seconds, 2), " s a step, MFU ", percent(cost.mfu), ", ",
                format_count(tokens / cost.seconds), " tokens/s, ",
                format_bytes(static_cast<int64_t>(cost.bytes)), " per GPU   ", choice.layout.text(), '\n');
}

nlohmann::ordered_json json_of(const tune::Choice& choice) {
  nlohmann::ordered_json json;
  const tune::CostLayout& layout = choice.layout;
  json["layout"] = {{"tp", layout.tp},
                    {"pp", layout.pp},
                    {"virtual_stages", layout.virtual_stages},
                    {"ep", layout.ep},
                    {"expert_tp", layout.expert_tp},
                    {"zero_stage", layout.zero_stage},
                    {"micro_batch", layout.micro_batch}};
  json["seconds"] = choice.cost.seconds;
  json["mfu"] = choice.cost.mfu;
  json["bytes"] = choice.cost.bytes;
  for (const auto& [name, seconds] : parts_of(choice.cost)) json["parts"][name] = seconds;
  return json;
}

std::vector<tune::Choice> choices_of(const config::RunConfig& config, const tune::Cluster& cluster,
                                     const ClusterOptions& options) {
  if (config.parallel.cp > 1)
    throw_user_error("--cluster ", options.cluster, ": parallel.cp is ", config.parallel.cp,
                     ", and the prediction knows no context parallelism; add --set parallel.cp=1");
  if (options.layouts > 0) {
    std::vector<tune::Choice> best = tune::best_layouts(config, cluster, static_cast<size_t>(options.layouts),
                                                        options.virtual_stages, options.hides);
    if (best.empty())
      throw_user_error("--cluster ", options.cluster, ": no layout holds the model in 0.9 of ",
                       format_bytes(static_cast<int64_t>(cluster.gpu.memory_bytes)),
                       " per GPU, or train.batch = ", config.train.batch,
                       " cannot be shared evenly; take more GPUs");
    return best;
  }
  if (config.parallel.tp > 1 && config.parallel.tp_mode == "2d")
    throw_user_error(
        "parallel.tp_mode is '2d', but --cluster predicts tensor parallelism in one dim alone; set it "
        "to '1d', or plan without --cluster");
  tune::CostLayout layout = tune::layout_of(config);
  layout.virtual_stages = options.virtual_stages;
  layout.hides = options.hides;
  const std::string reason = tune::misfit(config, cluster, layout);
  if (!reason.empty())
    throw_user_error("--cluster ", options.cluster, ": ", reason,
                     "; change it with --set parallel.…, or let --layouts 5 look for layouts");
  return {{layout, tune::predict_step(config, cluster, layout)}};
}

}  // namespace

std::string cluster_plan(const config::RunConfig& config, const ClusterOptions& options) {
  const tune::Cluster cluster = tune::parse_cluster(options.cluster);
  const std::vector<tune::Choice> choices = choices_of(config, cluster, options);
  if (options.as_json) {
    nlohmann::ordered_json json;
    json["cluster"] = options.cluster;
    json["kind"] = "predicted";
    for (const tune::Choice& choice : choices) json["choices"].push_back(json_of(choice));
    return json.dump(2) + '\n';
  }
  const double tokens = static_cast<double>(config.train.batch) * static_cast<double>(config.train.sequence);
  std::string text = concat("predicted, not measured (docs/scaling.md): ", cluster.num_gpus, " ",
                            cluster.gpu.name, ", ", format_count(tokens), " tokens a step\n");
  for (const tune::Choice& choice : choices) text += text_of(choice, tokens);
  if (options.layouts > 0) return text;
  for (const auto& [name, seconds] : parts_of(choices[0].cost)) {
    if (seconds == 0) continue;
    const std::string label = name;
    text += concat("  ", label, std::string(26 - label.size(), ' '), format_fixed(seconds, 3), " s  ",
                   percent(seconds / choices[0].cost.seconds), '\n');
  }
  return text;
}

}  // namespace moebius::cli
