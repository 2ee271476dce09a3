// Between folders in the Hugging Face layout and runs: what `moebius convert` does.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::train {

using BytesProgress = std::function<void(int64_t num_bytes)>;

struct FromHfOptions {
  std::filesystem::path from, to;
  std::string precision = {};  // empty: as the files are
  BytesProgress progress = {};
};

struct FromHfResult {
  std::string architecture;
  config::RunConfig config;
  int64_t num_parameters = 0;
  int64_t num_bytes = 0;                // of tensors read
  std::vector<std::string> non_finite;  // tensors with NaN or infinite values
  std::vector<std::string> notes;
};

// Makes a run folder out of a model folder: a checkpoint of step 0, a config.toml with which training goes on
// from it, the tokenizer, and in hf/ the files that an export gives back. The run folder appears when it is
// complete. Host memory: the two largest parameters, and what the system keeps of the source's files.
FromHfResult convert_from_hf(const FromHfOptions& options);

struct ToHfOptions {
  std::filesystem::path from, to;  // run folder or checkpoint
  std::string family = {};         // empty: as it came, else the first that can express the model
  int64_t shard_bytes = 5'000'000'000;
  BytesProgress progress = {};
};

struct ToHfResult {
  int64_t step = 0;
  int64_t num_bytes = 0;
};

// A quantised run is written as the package compressed-tensors lays it out (ckpt/hf/compressed_tensors.h).
ToHfResult convert_to_hf(const ToHfOptions& options);

struct UpcycleOptions {
  std::filesystem::path from, to;  // run folder or checkpoint of a dense model; run folder to make
  int64_t experts = 8, top_k = 2;
  int64_t seed = 1;  // of the routers
};

struct UpcycleResult {
  int64_t parameters_before = 0, parameters_after = 0;
};

// Makes a run whose model computes what the dense one does, with `experts` copies of each feed-forward
// (moe/upcycle.h), as a start for training.
UpcycleResult convert_upcycle(const UpcycleOptions& options);

}  // namespace moebius::train
