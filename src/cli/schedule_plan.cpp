#include "cli/schedule_plan.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/concat.h"
#include "base/units.h"
#include "parallel/layout.h"
#include "parallel/stage_link.h"
#include "tune/layer_split.h"
#include "tune/pipeline_schedule.h"
#include "tune/schedule_drawing.h"

namespace moebius::cli {
namespace {

using When = tune::DataExchanges::When;

// Of the ranks that [parallel] asks for; data ranks that it leaves open are one.
parallel::Layout layout_of(config::RunConfig config) {
  config::ParallelConfig& parallel = config.parallel;
  parallel.dp = std::max<int64_t>(parallel.dp, 1);
  parallel.fsdp = std::max<int64_t>(parallel.fsdp, 1);
  // Experts may lie across data ranks, which must be there then.
  const int64_t expert_tp = parallel.expert_tp == 0 ? parallel.tp : parallel.expert_tp;
  const int64_t stage = parallel.dp * parallel.fsdp * parallel.cp * parallel.tp;
  if (parallel.dp == 1 && stage % (parallel.ep * expert_tp) != 0) parallel.dp = parallel.ep;
  return parallel::make_layout(
      config, static_cast<int>(parallel.pp * parallel.dp * parallel.fsdp * parallel.cp * parallel.tp));
}

struct Planned {
  tune::PipelineSchedule schedule;
  std::vector<int64_t> layers;
  double bubble = 0, bubble_of_layers = 0;
  tune::DataExchanges exchanges;
};

Planned plan_of(const config::RunConfig& config, const parallel::Layout& layout) {
  const config::ParallelConfig& parallel = config.parallel;
  Planned planned;
  for (const nn::LayerRange& range : parallel::layers_of_pieces(config))
    planned.layers.push_back(range.end - range.begin);
  const int64_t own = config.train.batch / layout.batch_parts();
  planned.schedule =
      parallel::schedule_of(config, config.train.micro_batch == 0 ? 1 : own / config.train.micro_batch);
  const auto bubble = [&](const std::vector<double>& cost) {
    return tune::timeline_of(planned.schedule, tune::PipelineTimes::proportional_to(planned.schedule, cost))
        .bubble;
  };
  planned.bubble = bubble(std::vector<double>(planned.layers.size(), 1));
  planned.bubble_of_layers = bubble(tune::forward_flops(config.model, config.train.sequence, planned.layers));
  if (layout.size(parallel::Axis::data) > 1) {
    planned.exchanges.gradients = parallel.zero_stage >= 2 ? When::always : When::once;
    if (parallel.zero_stage > 0)
      planned.exchanges.weights = parallel.zero_stage == 3 ? When::always : When::once;
  }
  return planned;
}

std::string percent_of(double share) {
  return format_fixed(100 * share, 1) + " %";
}

std::string text_of(const Planned& planned, const parallel::Layout& layout) {
  const tune::PipelineSchedule& schedule = planned.schedule;
  std::string text =
      concat(parallel::describe(layout), "; ", schedule.stages == 1 ? "no pipeline" : name_of(schedule.kind),
             ", ", schedule.micro_batches, " micro-batches per rank\n");
  if (schedule.stages > 1) {
    text += "layers of the pieces:";
    for (const int64_t layers : planned.layers) text += concat(" ", layers);
    text += concat("\nidle: ", percent_of(planned.bubble), " with pieces alike (as drawn), ",
                   percent_of(planned.bubble_of_layers),
                   " with the arithmetic of their layers; transfers not counted\nmost micro-batches held:");
    for (int stage = 0; stage < schedule.stages; ++stage) text += concat(" ", schedule.most_held(stage));
    text += '\n';
  }
  return text + tune::draw(schedule, planned.exchanges) +
         "F forward, B backward, W gradients of weights, U update, ~ in turns with its neighbour; > "
         "activations, < gradients to another "
         "stage; S gradients summed, G weights gathered\n";
}

nlohmann::ordered_json json_of(const Planned& planned) {
  static constexpr const char* kPasses[] = {"forward", "backward", "weight"};
  const tune::PipelineSchedule& schedule = planned.schedule;
  nlohmann::ordered_json json;
  json["schedule"] = name_of(schedule.kind);
  json["stages"] = schedule.stages;
  json["chunks"] = schedule.chunks;
  json["micro_batches"] = schedule.micro_batches;
  json["together"] = schedule.together;
  json["layers"] = planned.layers;
  json["bubble"] = planned.bubble;
  json["bubble_of_layers"] = planned.bubble_of_layers;
  for (const auto& tasks : schedule.tasks) {
    nlohmann::ordered_json row = nlohmann::ordered_json::array();
    for (const tune::PipelineTask& task : tasks)
      row.push_back({{"pass", kPasses[static_cast<size_t>(task.pass)]},
                     {"chunk", task.chunk},
                     {"micro_batch", task.micro_batch}});
    json["tasks"].push_back(std::move(row));
  }
  json["transfers"] = nlohmann::ordered_json::array();
  for (const tune::PipelineTransfer& transfer : schedule.transfers)
    json["transfers"].push_back({{"from", transfer.from},
                                 {"to", transfer.to},
                                 {"after", transfer.after},
                                 {"before", transfer.before},
                                 {"carries", transfer.is_gradient ? "gradients" : "activations"}});
  return json;
}

}  // namespace

std::string schedule_plan(const config::RunConfig& config, bool as_json) {
  const parallel::Layout layout = layout_of(config);
  const Planned planned = plan_of(config, layout);
  return as_json ? json_of(planned).dump(2) + '\n' : text_of(planned, layout);
}

}  // namespace moebius::cli
