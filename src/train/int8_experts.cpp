#include "train/int8_experts.h"

#include "base/error.h"
#include "base/log.h"

namespace moebius::train {

void check_precision(const config::RunConfig& config, int64_t num_processes) {
  if (config.precision.experts != "int8") return;
  const config::MoeConfig& moe = config.model.moe;
  const auto refuse = [](const auto&... why) {
    throw_user_error("precision.experts is 'int8', but ", why..., ", or set precision.experts = 'model'");
  };
  if (moe.experts == 0) refuse("the model has no experts; set model.moe.experts");
  if (config.quant.is_on())
    refuse("quant.scheme is '", config.quant.scheme,
           "', which rounds them otherwise; set quant.scheme = 'none'");
  if (moe.expert_bias || moe.activation == "clamped_swiglu")
    refuse(
        "there are no integer products in training for experts with biases or a clamped activation; use "
        "plain ones");
  if (num_processes > 1)
    refuse("the codes of the experts are not exchanged by the ", num_processes,
           " processes of this run; train with one process");
}

std::unique_ptr<Int8Experts> Int8Experts::attach(const config::RunConfig& config, nn::Decoder& decoder) {
  if (config.precision.experts != "int8") return nullptr;
  const at::Device device = decoder.device();
  if (!ops::has_int8_products(device)) {
    log_warn("precision.experts is 'int8', but ", device.str(),
             " has no integer products in this build (a GPU needs compute capability 9.0): the experts are "
             "trained in ",
             config.train.precision);
    return nullptr;
  }
  if (device.is_cuda() && config.train.precision != "bf16")
    throw_user_error("precision.experts is 'int8', but train.precision is '", config.train.precision,
                     "', and on a GPU the rest must be bf16; set train.precision = 'bf16'");
  auto experts = std::make_unique<Int8Experts>();
  for (nn::Param& param : decoder.params().params()) {
    if (param.spec.klass != nn::ParamClass::expert || !param.spec.is_product) continue;
    const int64_t n = param.value.size(1), k = param.value.size(2);
    if (!ops::int8_training_serves(device, n, k))
      throw_user_error(
          "precision.experts is 'int8', but ", param.spec.name, " is ", n, " x ", k,
          ", and on a GPU both must be multiples of 16; change model.dim and model.moe.expert_dim, or set "
          "precision.experts = 'model'");
    experts->products_.push_back(
        std::make_shared<quant::Int8TrainingProduct>(param.spec.name.ends_with(".gate_up")));
    param.product = experts->products_.back();
  }
  return experts;
}

void Int8Experts::weights_changed() {
  for (const auto& product : products_) product->weight_changed();
}

}  // namespace moebius::train
