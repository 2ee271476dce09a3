#include "cli/config_files.h"

#include "config/load.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;

void locate(std::string& name, const fs::path& config_folder) {
  if (name.empty() || fs::path(name).is_absolute()) return;
  for (const fs::path& candidate : {fs::path(name), config_folder / name}) {
    if (!fs::exists(candidate)) continue;
    name = fs::weakly_canonical(fs::absolute(candidate)).string();
    return;
  }
}

}  // namespace

config::RunConfig load_config(const fs::path& path, const std::vector<std::string>& overrides) {
  config::RunConfig config = config::load_run_config(path, overrides);
  const fs::path folder = fs::absolute(path).parent_path();
  for (std::string& file : config.data.files) locate(file, folder);
  locate(config.data.validation_file, folder);
  if (config.data.tokenizer != "bytes") locate(config.data.tokenizer, folder);
  locate(config.train.initial_weights, folder);
  return config;
}

}  // namespace moebius::cli
