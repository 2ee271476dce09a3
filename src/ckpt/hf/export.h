// From parameters to a model folder in the Hugging Face layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "ckpt/hf/compressed_tensors.h"
#include "ckpt/hf/plan.h"
#include "ckpt/safetensors.h"
#include "config/model_config.h"
#include "nn/param.h"

namespace moebius::ckpt::hf {

// What an import remembers beside the weights, so that an export gives back what came in. Kept as a folder:
// config.json, generation_config.json, tokenizer files, and dtypes.json (name -> "F32" for tensors whose type
// is not that of most; which copies of tensors there were). Quantised tensors are remembered as the bf16 that
// they become, and their quantization_config is left out.
struct Carried {
  std::string config_text;  // config.json as it was; empty: none
  DType dtype = DType::f32;
  std::map<std::string, DType> exceptions;
  std::set<std::string> copies;  // of Piece::is_copy
};
void write_carried(const ImportPlan& plan, const ModelFolder& from, const std::filesystem::path& folder);
Carried read_carried(const std::filesystem::path& folder);  // of an empty path or a missing folder: nothing

struct ExportOptions {
  std::string family;             // empty: as carried, else the first that can express the model
  std::filesystem::path carried;  // folder of write_carried; empty: none
  std::vector<std::filesystem::path> extra_files;  // copied into the folder unless carried
  int64_t shard_bytes = 5'000'000'000;
  int64_t max_positions = 0;  // for config.json, where nothing is carried
  // Parameters that are integers, whose values are not read; null: none.
  const IntegerWeights* integers = nullptr;
  std::function<void(int64_t num_bytes)> progress;
};

// The config.json text of a model. UserError that lists what the family cannot express.
std::string config_text(const Family& family, const config::ModelConfig& model, DType dtype,
                        int64_t max_positions);

// Writes OUT: config.json, generation_config.json and tokenizer files where carried, model.safetensors or
// shards with an index. The folder appears when it is complete. UserError when it exists, when the disk is
// full, or when no family can express the model. Returns the bytes of tensors written.
int64_t export_model(const config::ModelConfig& model, const std::string& precision,
                     const nn::ParamTable& params, const std::filesystem::path& out,
                     const ExportOptions& options);

}  // namespace moebius::ckpt::hf
