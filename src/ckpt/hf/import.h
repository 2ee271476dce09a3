// From a model folder in the Hugging Face layout to parameters.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ckpt/hf/family.h"
#include "ckpt/hf/model_folder.h"
#include "config/model_config.h"
#include "nn/param.h"

namespace moebius::ckpt::hf {

struct ImportPlan {
  const Family* family = nullptr;
  config::ModelConfig model;
  std::vector<Piece> pieces;       // in the order in which they are read: file by file
  std::string precision;           // "bf16" when all weights are, else "fp32" (exact for fp16)
  std::vector<std::string> notes;  // what the folder has and the model does not need
};

// Reads the config and compares every tensor's name and shape with what the model needs, before any memory
// is taken. UserError that lists the missing, superfluous and misshapen tensors (both shapes).
ImportPlan plan_import(const ModelFolder& folder);

struct ImportResult {
  std::vector<std::string> non_finite;  // tensors on disk with NaN or infinite values
  int64_t num_bytes = 0;                // read
};

// Fills the parameters, file by file, with conversion of dtype; each file's map is released behind the last
// tensor. Parameters that no piece names keep their values. `progress` is called with the bytes read so far.
ImportResult import_weights(const ImportPlan& plan, ModelFolder& folder, nn::ParamTable& params,
                            const std::function<void(int64_t num_bytes)>& progress = {});

}  // namespace moebius::ckpt::hf
