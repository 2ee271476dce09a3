// A family of models in the Hugging Face layout: how its config.json reads as ours, and which tensor on disk
// is which part of which parameter. One file in families/ each; families.cpp lists them.
// Source of names, shapes and arithmetic: Hugging Face Transformers 5.17, src/transformers/models/<family>.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/hf/json_reader.h"
#include "ckpt/hf/piece.h"
#include "config/model_config.h"

namespace moebius::ckpt::hf {

struct Family {
  std::string_view model_type;    // "qwen3_moe"
  std::string_view architecture;  // "Qwen3MoeForCausalLM"

  // The model that a config.json describes. UserError for what is missing, wrong, or not supported.
  config::ModelConfig (*read)(const JsonReader& json);

  // The fields of config.json that say how `model` is built, beside those of write_common. What the family
  // cannot say is left out: the caller reads the result back and compares.
  void (*write)(const config::ModelConfig& model, nlohmann::ordered_json& json);

  // Every tensor on disk, each part of a parameter exactly once (and copies of some). `model` is what read()
  // made of `json`; its mtp.depth may have been raised where has_mtp says so.
  std::vector<Piece> (*pieces)(const config::ModelConfig& model, const JsonReader& json);

  // Whether the layout knows a module of multi-token prediction (num_nextn_predict_layers), behind the last
  // layer.
  bool has_mtp = false;
};

// In the order in which an export tries them.
const std::vector<const Family*>& families();

// UserError listing the known ones when there is none of this type.
const Family& family_of(const JsonReader& json);
const Family& family_named(std::string_view model_type);

}  // namespace moebius::ckpt::hf
