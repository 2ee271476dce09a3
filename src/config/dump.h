// A RunConfig as TOML text, and the differences of two.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/train_config.h"

namespace moebius::config {

enum class DumpStyle {
  kFull,     // every field, with its meaning, unit and allowed values as comments
  kMinimal,  // only what differs from the defaults, no comments
};

// Loading the text gives exactly the same config.
std::string dump(const RunConfig& config, DumpStyle style);

struct Difference {
  std::string path;         // "model.moe.top_k"
  std::string left, right;  // values as TOML
};

// Fields that differ, in the order of description; only those whose path starts with `prefix` ("model.").
std::vector<Difference> diff(const RunConfig& left, const RunConfig& right, std::string_view prefix = "");

// One line per difference: "  model.dim: 128 -> 256".
std::string describe_differences(const std::vector<Difference>& differences);

}  // namespace moebius::config
