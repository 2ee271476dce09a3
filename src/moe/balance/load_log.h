// The load of experts as a training run logged it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace moebius::moe {

struct LoadLog {
  struct Step {
    int64_t step = 0;
    int64_t tokens = 0;                       // of this step; 0: not known
    std::vector<std::vector<double>> shares;  // of each layer with experts, per expert
  };
  std::vector<int64_t> layers;  // their numbers
  int64_t num_experts = 0;
  std::vector<Step> steps;  // rising
};

// Reads `step`, `tokens` and `layers[].load` of a metrics.jsonl (docs/formats/metrics.md), plain or gzip;
// other keys may be missing. UserError naming file and line when a line is damaged, layers or experts change,
// or nothing is logged.
LoadLog read_load_log(const std::filesystem::path& file);

}  // namespace moebius::moe
