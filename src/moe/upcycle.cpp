#include "moe/upcycle.h"

#include <ATen/core/grad_mode.h>

#include <map>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "config/validate.h"

namespace moebius::moe {
namespace {

void require(bool holds, const char* what, const char* why, const char* way_out) {
  if (!holds)
    throw_user_error(what, ", but upcycling keeps the dense model's output only ", why, "; ", way_out);
}

}  // namespace

config::ModelConfig upcycled_config(const config::ModelConfig& dense, const config::MoeConfig& moe) {
  if (dense.moe.experts > 0)
    throw_user_error("model.moe.experts is ", dense.moe.experts,
                     " already; only a dense model can be upcycled, give one with model.moe.experts = 0");
  if (moe.experts < 1)
    throw_user_error("model.moe.experts is ", moe.experts,
                     "; set how many experts each feed-forward becomes");
  require(moe.normalize_weights || moe.softmax_order == "after_topk", "model.moe.normalize_weights is false",
          "with weights that sum to 1", "set it to true, or softmax_order to 'after_topk'");
  require(moe.weight_scale == 1.0, "model.moe.weight_scale is not 1", "with weights that sum to 1",
          "set it to 1");
  require(moe.capacity_factor == 0, "model.moe.capacity_factor is set", "without dropped tokens",
          "set it to 0");
  require(moe.shared_experts == 0, "model.moe.shared_experts is above 0", "without shared experts",
          "set it to 0");
  require(moe.activation == "swiglu", "model.moe.activation is not 'swiglu'",
          "with the dense feed-forward's activation", "set it to 'swiglu'");
  config::ModelConfig routed = dense;
  routed.moe = moe;
  routed.moe.expert_dim = dense.ffn_dim;
  routed.moe.expert_bias = dense.ffn_bias;
  config::validate_model(routed);
  return routed;
}

void upcycle(const nn::ParamTable& dense, nn::ParamTable& routed) {
  const at::NoGradGuard no_grad;
  size_t used = 0;
  std::map<std::string, const nn::Param*> by_name;
  for (const nn::Param& param : dense.params()) by_name[param.spec.name] = &param;
  for (nn::Param& param : routed.params()) {
    // "layers.3.moe.down" comes from "layers.3.ffn.down".
    std::string name = param.spec.name;
    const size_t at = name.find(".moe.");
    if (at != std::string::npos) name.replace(at, 5, ".ffn.");
    const auto source = by_name.find(name);
    if (source == by_name.end()) {
      MOEBIUS_CHECK(param.spec.klass == nn::ParamClass::router, "nothing becomes ", param.spec.name);
      continue;
    }
    const at::Tensor& value = source->second->value;
    const bool copies = at != std::string::npos;
    MOEBIUS_CHECK(
        copies ? param.value.sizes().slice(1) == value.sizes() : param.value.sizes() == value.sizes(),
        param.spec.name, " is ", param.value.sizes(), ", of ", value.sizes());
    param.value.copy_(copies ? value.unsqueeze(0) : value);  // to every expert
    ++used;
  }
  MOEBIUS_CHECK_EQ(used, by_name.size(), "parameters of the dense model that found their place");
}

}  // namespace moebius::moe
