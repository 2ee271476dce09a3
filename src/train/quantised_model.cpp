#include "train/quantised_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/integers.h"
#include "base/log.h"
#include "ops/int4_linear.h"
#include "ops/int8_linear.h"
#include "quant/format.h"
#include "quant/int4_product.h"
#include "train/model_files.h"

namespace moebius::train {
namespace {

constexpr char kField[] = "quantisation";
constexpr int64_t kInt4GroupStep = 64;  // of the kernels

// The names of the weights that a checkpoint holds as codes.
bool holds_codes(const ckpt::Checkpoint& checkpoint, const std::string& name) {
  for (const ckpt::ManifestGroup& group : checkpoint.manifest().groups) {
    if (group.name != kModelGroup) continue;
    const auto at =
        std::lower_bound(group.tensors.begin(), group.tensors.end(), name,
                         [](const ckpt::ManifestTensor& t, const std::string& n) { return t.spec.name < n; });
    return at != group.tensors.end() && at->spec.name == name &&
           (at->spec.dtype == ckpt::DType::i8 || at->spec.dtype == ckpt::DType::u8);
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
             " in this build: the quantised weights are used as floats");
}

// What a weight is stored as; the last dim of its scales is left out for one scale per row.
struct Stored {
  std::vector<int64_t> codes, scales;
  at::ScalarType dtype;
};

Stored stored_as(const nn::ParamSpec& spec, quant::Scheme scheme, int64_t group) {
  Stored stored{spec.dims, spec.dims, at::kChar};
  stored.scales.pop_back();
  if (scheme != quant::Scheme::int4_w4a16) return stored;
  stored.dtype = at::kByte;
  stored.codes.back() = ceil_div(spec.dims.back(), int64_t{2});
  stored.scales.push_back(ceil_div(spec.dims.back(), group));
  return stored;
}

std::shared_ptr<const quant::Product> product_of(const at::Tensor& codes, const at::Tensor& scales,
                                                 quant::Scheme scheme, int64_t group,
                                                 const nn::ParamSpec& spec, const config::ModelConfig& config,
                                                 at::ScalarType dtype) {
  if (scheme == quant::Scheme::int4_w4a16)
    return std::make_shared<quant::Int4Product>(quant::Int4Codes{codes, scales}, spec.dims.back(), group,
                                                dtype);
  return std::make_shared<quant::Int8Product>(codes, scales, scheme, use_of(spec, config), dtype);
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

std::string state_with_scheme(const std::string& state_json, quant::Scheme scheme, int64_t group) {
  auto state = nlohmann::json::parse(state_json);
  state[kField] = {{"scheme", quant::name_of(scheme)}};
  if (scheme == quant::Scheme::int4_w4a16) state[kField]["group"] = group;
  return state.dump();
}

int64_t group_of(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme) {
  if (scheme != quant::Scheme::int4_w4a16) return 0;
  const auto state = nlohmann::json::parse(checkpoint.state_json());
  const int64_t group = state[kField].value("group", int64_t{0});
  if (group < kInt4GroupStep || group % kInt4GroupStep != 0)
    throw_user_error((checkpoint.path() / ckpt::kManifestFile).string(), ": int4 weights in groups of ",
                     group, ", which are no multiple of ", kInt4GroupStep,
                     "; quantise the float checkpoint again");
  return group;
}

namespace {

// Codes and scales, or values, of all parameters in order.
std::vector<at::Tensor> mapped_values(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                                      int64_t group_size, const nn::Decoder& decoder) {
  // Tensors without memory stand for what is looked up.
  const auto meta = [](at::IntArrayRef dims, at::ScalarType dtype) {
    return at::empty(dims, at::TensorOptions().dtype(dtype).device(at::kMeta));
  };
  ckpt::TensorGroup group{kModelGroup, {}};
  for (const nn::Param& param : decoder.params().params()) {
    const std::string& name = param.spec.name;
    if (is_quantisable(param.spec) && holds_codes(checkpoint, name)) {
      const Stored stored = stored_as(param.spec, scheme, group_size);
      group.tensors.push_back({name, meta(stored.codes, stored.dtype)});
      group.tensors.push_back({scale_name(name), meta(stored.scales, at::kFloat)});
    } else {
      group.tensors.push_back({name, meta(param.spec.dims, param.value.scalar_type())});
    }
  }
  return checkpoint.mapped(group);
}

bool are_codes(const at::Tensor& value) {
  return value.scalar_type() == at::kChar || value.scalar_type() == at::kByte;
}

}  // namespace

std::vector<MappedCodes> map_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                                       nn::Decoder& decoder) {
  const std::vector<at::Tensor> values =
      mapped_values(checkpoint, scheme, group_of(checkpoint, scheme), decoder);
  std::vector<MappedCodes> result;
  size_t next = 0;
  for (nn::Param& param : decoder.params().params()) {
    const at::Tensor& value = values[next++];
    param.value = are_codes(value) ? at::Tensor() : value;
    if (are_codes(value)) result.push_back({param.spec.name, value, values[next++]});
  }
  return result;
}

void load_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme, nn::Decoder& decoder) {
  const at::NoGradGuard no_grad;
  const int64_t group_size = group_of(checkpoint, scheme);
  const std::vector<at::Tensor> values = mapped_values(checkpoint, scheme, group_size, decoder);
  const bool is_int4 = scheme == quant::Scheme::int4_w4a16;
  const bool has_products =
      is_int4 ? ops::has_int4_products(decoder.device()) : ops::has_int8_products(decoder.device());
  if (!has_products) say_once_that_floats_are_used(decoder.device());
  size_t next = 0;
  for (nn::Param& param : decoder.params().params()) {
    const at::Tensor& value = values[next++];
    if (!are_codes(value)) {
      param.value.copy_(value);
      continue;
    }
    const at::Tensor& scales = values[next++];
    if (has_products) {
      const at::ScalarType dtype = param.value.scalar_type();
      param.value = at::Tensor();  // never touched: it cost nothing
      param.product = product_of(value.to(decoder.device()), scales.to(decoder.device()), scheme, group_size,
                                 param.spec, decoder.config(), dtype);
    } else if (is_int4) {
      param.value.copy_(
          ops::int4_values(value, scales, param.spec.dims.back(), group_size, param.value.scalar_type()));
    } else {
      param.value.copy_(quant::dequantise(value, scales.unsqueeze(-1), param.value.scalar_type()));
    }
  }
}

}  // namespace moebius::train
