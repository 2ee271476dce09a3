// Runs of a tiny model by one process or several on loopback, in a folder of the test's own.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/child_process.h"
#include "tests/tiny_config.h"

namespace moebius {

class TinyTraining : public testing::Test {
 protected:
  // `moebius train` of 20 steps into the folder's `name`; each setting is a path=value.
  Finished run(const std::string& name, const std::vector<std::string>& settings, int processes,
               const std::vector<std::string>& flags = {}) const {
    std::vector<std::string> words{"train",    config, "--run",     (folder / name).string(),
                                   "--device", "cpu",  "--threads", "1"};
    words.insert(words.end(), flags.begin(), flags.end());
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    if (processes > 1)
      words.insert(words.end(), {"--nproc", std::to_string(processes), "--set", "parallel.timeout_s=60"});
    return run_program(words);
  }

  TestFolder folder;
  std::string config = write_tiny_config(folder, 20);
};

}  // namespace moebius
