// `moebius plan --schedule`: the order of passes and exchanges of a training step (tune/pipeline_schedule.h).
#pragma once

#include <string>

#include "config/train_config.h"

namespace moebius::cli {

// What is to be printed. UserError where the layout does not fit the model or the batch, as training would.
std::string schedule_plan(const config::RunConfig& config, bool as_json);

}  // namespace moebius::cli
