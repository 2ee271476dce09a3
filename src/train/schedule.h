// Learning rate over time: a pure function of the step.
#pragma once

#include <cstdint>

#include "config/train_config.h"

namespace moebius::train {

// Factor on the peak learning rate for step 1..total_steps: linear warm-up from 0, then constant, linear or
// cosine (Loshchilov & Hutter 2017) to final_lr_ratio, or wsd (Hu et al. 2024, "MiniCPM"): constant, then
// linear to final_lr_ratio over the last decay_fraction of all steps.
double schedule_factor(const config::ScheduleConfig& schedule, int64_t step, int64_t total_steps);

}  // namespace moebius::train
