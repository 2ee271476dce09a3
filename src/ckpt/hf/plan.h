// What an import will do, worked out from config.json and the headers of the weights before any memory is
// taken. Without torch.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/hf/family.h"
#include "ckpt/hf/model_folder.h"
#include "config/model_config.h"

namespace moebius::ckpt::hf {

// What a config.json says the model is.
struct Description {
  const Family* family = nullptr;
  config::ModelConfig model;
  std::vector<Piece> pieces;
};

// `names`: of the tensors that there are, sorted; they decide whether the model has a module of multi-token
// prediction (Transformers saves models without theirs). UserError for what is missing, wrong or not
// supported, for sizes that no config may have, and for a model of far more tensors than there are names.
Description describe_model(const JsonReader& json, std::span<const std::string_view> names);

// How the weights are quantised, from quantization_config.
struct Quantisation {
  enum class Kind : uint8_t { none, fp8_blocks, mxfp4 };
  Kind kind = Kind::none;
  int64_t block_rows = 0, block_columns = 0;  // fp8_blocks: that share a scale
};
// UserError for a method that is not read.
Quantisation quantisation_of(const JsonReader& json);

// Where the values of a piece lie, and how.
//   fp8_blocks  NAME is F8_E4M3 and NAME_scale_inv has a factor for each block. (DeepSeek-AI 2024,
//               "DeepSeek-V3 Technical Report", section 3.3)
//   mxfp4       NAME_blocks holds two 4-bit floats (E2M1) a byte, the lower half first, in groups of 32 along
//   the
//               last dim of the transposed piece, and NAME_scales the exponent of each group, biased by 127.
//               (Open Compute Project, "OCP Microscaling Formats (MX) v1.0", 2023; layout: gpt-oss)
struct Storage {
  Quantisation::Kind kind = Quantisation::Kind::none;
  const ModelFolder::Entry* values = nullptr;  // null: the folder has no such tensor
  const ModelFolder::Entry* scales = nullptr;
};
Storage storage_of(const Piece& piece, const ModelFolder& folder);

struct ImportPlan {
  const Family* family = nullptr;
  config::ModelConfig model;
  std::vector<Piece> pieces;  // those that the folder has
  Quantisation quantisation;
  std::string precision;  // "bf16" when all weights are (or are quantised), else "fp32" (exact for fp16)
  std::vector<std::string> notes;  // what the folder has and the model does not need, or has otherwise
};

// Reads the config and compares every tensor's name, shape and type with what the model needs. UserError that
// lists the missing, superfluous and misshapen tensors (both shapes).
ImportPlan plan_import(const ModelFolder& folder);

}  // namespace moebius::ckpt::hf
