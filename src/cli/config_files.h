// Configs given on the command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::cli {

// Loads a config with overrides (config/load.h). Relative paths of data files and of the tokenizer are looked
// up from the current folder, then from the config's; those found come back absolute.
config::RunConfig load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);

}  // namespace moebius::cli
