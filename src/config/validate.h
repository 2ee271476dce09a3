// Rules that tie several fields together; ranges of single fields are checked when they are assigned.
#pragma once

#include "config/train_config.h"

namespace moebius::config {

// UserError with the dotted field, its value, the reason and the way out; all broken rules together, one a
// line.
void validate(const RunConfig& config);

// The model's part alone, for models that come from elsewhere (checkpoints, imports).
void validate_model(const ModelConfig& model);

}  // namespace moebius::config
