// Llama: dense. Biases and head size as the config says. (Touvron et al. 2023; Llama 3: Dubey et al. 2024)
#include <nlohmann/json.hpp>

#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

config::ModelConfig read_llama(const JsonReader& json) {
  config::ModelConfig model = read_common(json);
  model.attention_bias = model.attention_output_bias = json.boolean("attention_bias", false);
  model.ffn_bias = json.boolean("mlp_bias", false);
  return model;
}

void write_llama(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["attention_bias"] = model.attention_bias;
  json["mlp_bias"] = model.ffn_bias;
}

}  // namespace

const Family kLlama{"llama", "LlamaForCausalLM", read_llama, write_llama, standard_pieces};

}  // namespace moebius::ckpt::hf
