// `moebius plan --cluster`: predicted step time of a layout, or of the best ones (tune/step_cost.h).
#pragma once

#include <cstdint>
#include <string>

#include "config/train_config.h"

namespace moebius::cli {

struct ClusterOptions {
  std::string cluster;         // "h100x128"
  int64_t layouts = 0;         // 0: the layout of the config; else the best so many
  int64_t virtual_stages = 1;  // of a pipeline
  bool hides = false;          // exchanges of weights and gradients behind arithmetic
  bool as_json = false;
};

// What is to be printed. UserError where the cluster is not known or the model does not fit on it.
std::string cluster_plan(const config::RunConfig& config, const ClusterOptions& options);

}  // namespace moebius::cli
