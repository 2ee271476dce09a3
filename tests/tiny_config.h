// A config file of a run that takes a second.
#pragma once

#include <string>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius {

// Writes text and config into the folder; returns the config's path.
inline std::string write_tiny_config(const TestFolder& folder, int steps) {
  std::string text;
  for (int i = 0; i < 800; ++i)
    text +=
        "the " + std::to_string(i % 37) + " owls of the reed bed sing at " + std::to_string(i % 11) + "\n";
  write_file_atomic(folder / "text.txt", text);
  write_file_atomic(folder / "tiny.toml",
                    "[model]\nlayers = 1\ndim = 16\nheads = 2\nkv_heads = 1\n"
                    "[model.moe]\nexperts = 4\ntop_k = 2\nexpert_dim = 16\n"
                    "[data]\nfiles = [\"text.txt\"]\n"
                    "[train]\nsteps = " +
                        std::to_string(steps) +
                        "\nsequence = 16\nbatch = 4\nsample_tokens = 20\nlog_every = 1\n"
                        "[checkpoint]\nevery = 3\n");
  return (folder / "tiny.toml").string();
}

}  // namespace moebius
