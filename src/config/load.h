// From a TOML file and dotted overrides to a checked RunConfig.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "config/train_config.h"

namespace moebius::config {

// Reads `path`, applies `overrides` in order, checks everything (validate.h). Each override is
// "dotted.name=value": a TOML value, where text needs no quotes ("train.precision=bf16") and lists need no
// brackets ("data.files=a.txt,b.txt"). UserError names the dotted field, its value, where it stands
// (file:line or the override) and what is allowed; all mistakes of the file are reported together, one a
// line.
RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});

// The same from text; `source` stands for the file name in messages.
RunConfig parse_run_config(std::string_view text, const std::string& source,
                           const std::vector<std::string>& overrides = {});

// Applies overrides to a config that exists; does not check cross-field rules.
void apply_overrides(RunConfig& config, const std::vector<std::string>& overrides);

}  // namespace moebius::config
