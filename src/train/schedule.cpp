#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moebius::train {

double schedule_factor(const config::ScheduleConfig& schedule, int64_t step, int64_t total_steps) {
  const auto at = static_cast<double>(step), warmup = static_cast<double>(schedule.warmup_steps);
  const auto total = static_cast<double>(total_steps);
  if (at < warmup) return at / warmup;
  if (schedule.kind == "constant") return 1;
  // Share of the way from the end of the flat part to the last step.
  const double begin =
      schedule.kind == "wsd" ? std::max(warmup, total * (1 - schedule.decay_fraction)) : warmup;
  const double way = total > begin ? std::clamp((at - begin) / (total - begin), 0.0, 1.0) : 0.0;
  const double fall = schedule.kind == "cosine" ? 0.5 - 0.5 * std::cos(std::numbers::pi * way) : way;
  return 1 - fall * (1 - schedule.final_lr_ratio);
}

}  // namespace moebius::train
