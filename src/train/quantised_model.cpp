#include "train/quantised_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "ops/int8_linear.h"
#include "quant/format.h"
#include "train/model_files.h"

namespace moebius::train {
namespace {

constexpr char kField[] = "quantisation";

// The names of the weights that a checkpoint holds as codes.
bool holds_codes(const ckpt::Checkpoint& checkpoint, const std::string& name) {
  for (const ckpt::ManifestGroup& group : checkpoint.manifest().groups) {
    if (group.name != kModelGroup) continue;
    const auto at =
        std::lower_bound(group.tensors.begin(), group.tensors.end(), name,
                         [](const ckpt::ManifestTensor& t, const std::string& n) { return t.spec.name < n; });
    return at != group.tensors.end() && at->spec.name == name && at->spec.dtype == ckpt::DType::i8;
  }
  return false;
}

quant::WeightUse use_of(const nn::ParamSpec& spec, const config::ModelConfig& config) {
  if (spec.dims.size() == 2) return quant::WeightUse::linear;
  const bool plain = !config.moe.expert_bias && config.moe.activation != "clamped_swiglu";
  return plain && spec.name.ends_with(".gate_up") ? quant::WeightUse::activated_experts
                                                  : quant::WeightUse::experts;
}

void say_once_that_floats_are_used(at::Device device) {
  static std::atomic<bool> said{false};
  if (!said.exchange(true))
    log_warn("there are no integer products for ", device.str(),
             " in this build: the int8 weights are used as floats");
}

}  // namespace

std::string scale_name(const std::string& weight) {
  return weight + ".scale";
}

bool is_quantisable(const nn::ParamSpec& spec) {
  return spec.is_product && spec.dims.size() >= 2 && !spec.name.ends_with(".kv_up");
}

std::optional<quant::Scheme> scheme_of(const ckpt::Checkpoint& checkpoint) {
  const auto state = nlohmann::json::parse(checkpoint.state_json());
  if (!state.contains(kField)) return std::nullopt;
  const std::string name = state[kField].is_object() ? state[kField].value("scheme", std::string()) : "";
  if (const auto scheme = quant::scheme_of(name)) return scheme;
  std::string all;
  for (const std::string& each : quant::scheme_names()) all += (all.empty() ? "" : ", ") + each;
  throw_user_error((checkpoint.path() / ckpt::kManifestFile).string(), ": quantised with the scheme '", name,
                   "', but this program reads ", all, "; use the newer Moebius that wrote it");
}

void refuse_quantised(const ckpt::Checkpoint& checkpoint, const std::string& what,
                      const std::string& way_out) {
  const std::optional<quant::Scheme> scheme = scheme_of(checkpoint);
  if (scheme)
    throw_user_error("'", checkpoint.path().string(), "' ", what, " (", quant::name_of(*scheme), "); ",
                     way_out);
}

std::string state_with_scheme(const std::string& state_json, quant::Scheme scheme) {
  auto state = nlohmann::json::parse(state_json);
  state[kField] = {{"scheme", quant::name_of(scheme)}};
  return state.dump();
}

void load_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme, nn::Decoder& decoder) {
  const at::NoGradGuard no_grad;
  // Tensors without memory stand for what is looked up.
  const auto meta = [](at::IntArrayRef dims, at::ScalarType dtype) {
    return at::empty(dims, at::TensorOptions().dtype(dtype).device(at::kMeta));
  };
  ckpt::TensorGroup group{kModelGroup, {}};
  for (const nn::Param& param : decoder.params().params()) {
    const std::string& name = param.spec.name;
    if (is_quantisable(param.spec) && holds_codes(checkpoint, name)) {
      std::vector<int64_t> rows = param.spec.dims;
      rows.pop_back();
      group.tensors.push_back({name, meta(param.spec.dims, at::kChar)});
      group.tensors.push_back({scale_name(name), meta(rows, at::kFloat)});
    } else {
      group.tensors.push_back({name, meta(param.spec.dims, param.value.scalar_type())});
    }
  }
  const std::vector<at::Tensor> values = checkpoint.mapped(group);
  const bool has_products = ops::has_int8_products(decoder.device());
  if (!has_products) say_once_that_floats_are_used(decoder.device());
  size_t next = 0;
  for (nn::Param& param : decoder.params().params()) {
    const at::Tensor& value = values[next++];
    if (value.scalar_type() != at::kChar) {
      param.value.copy_(value);
      continue;
    }
    const at::Tensor& scales = values[next++];
    if (has_products) {
      const at::ScalarType dtype = param.value.scalar_type();
      param.value = at::Tensor();  // never touched: it cost nothing
      param.product =
          std::make_shared<quant::Int8Product>(value.to(decoder.device()), scales.to(decoder.device()),
                                               scheme, use_of(param.spec, decoder.config()), dtype);
    } else {
      param.value.copy_(quant::dequantise(value, scales.unsqueeze(-1), param.value.scalar_type()));
    }
  }
}

}  // namespace moebius::train
