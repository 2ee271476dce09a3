#include "train/quantisation.h"

#include <algorithm>

#include "base/log.h"
#include "train/schedule.h"

namespace moebius::train {
namespace {

using quant::FakeQuantiser;
using quant::FakeQuantiserOptions;
using quant::RangeRule;
using quant::Sharing;

RangeRule rule_of(const std::string& range) {
  if (range == "percentile") return RangeRule::percentile;
  return range == "mse" || range == "learned" ? RangeRule::mse : RangeRule::minmax;
}

FakeQuantiserOptions::Compensation compensation_of(const std::string& word) {
  if (word == "uniform") return FakeQuantiserOptions::Compensation::uniform;
  if (word == "gaussian") return FakeQuantiserOptions::Compensation::gaussian;
  return word == "error_feedback" ? FakeQuantiserOptions::Compensation::feedback
                                  : FakeQuantiserOptions::Compensation::none;
}

FakeQuantiserOptions quantiser_options(const config::RunConfig& run) {
  const config::QuantConfig& config = run.quant;
  FakeQuantiserOptions options;
  options.weight_bits = static_cast<int>(config.weight_bits);
  options.activation_bits = static_cast<int>(config.activation_bits);
  options.weight_sharing = config.weight_scale == "channel"  ? Sharing::row
                           : config.weight_scale == "tensor" ? Sharing::matrix
                                                             : Sharing::all;
  options.per_token = config.activation_scale == "token";
  options.range.rule = rule_of(config.range);
  options.range.percentile = config.percentile;
  options.learned = config.range == "learned";
  options.momentum = config.range_momentum;
  options.compensation = compensation_of(config.compensation);
  options.share = config.share;
  options.noisy_activations = config.compensate == "both";
  options.seed = static_cast<uint64_t>(run.train.seed);
  return options;
}

config::OptimizerConfig optimizer_of_steps(const config::OptimizerConfig& model) {
  config::OptimizerConfig config = model;
  config.state_dtype = "fp32";
  config.weight_decay = 0;
  return config;
}

}  // namespace

std::string quant_class_of(const nn::ParamSpec& spec) {
  if (!spec.is_product) return {};
  if (spec.klass == nn::ParamClass::expert) return "experts";
  return spec.name.find(".attention.") != std::string::npos ? "attention" : "ffn";
}

std::unique_ptr<Quantisation> Quantisation::attach(const config::RunConfig& config, nn::Decoder& decoder) {
  if (!config.quant.is_on()) return nullptr;
  return std::unique_ptr<Quantisation>(new Quantisation(config, decoder));
}

Quantisation::Quantisation(const config::RunConfig& config, nn::Decoder& decoder)
    : config_(config.quant),
      schedule_(config.schedule),
      num_steps_(config.train.steps),
      quantiser_(quantiser_options(config)) {
  for (nn::Param& param : decoder.params().params()) {
    const std::string part = quant_class_of(param.spec);
    // A weight that is held as integers already has its product.
    if (part.empty() || param.product || std::ranges::find(config_.classes, part) == config_.classes.end())
      continue;
    param.product = quantiser_.add(param.spec.name, param.value);
    ++num_products_;
  }
  if (num_products_ == 0)
    log_warn("quant.classes names no product that this model has: nothing is quantised");
  for (const quant::QuantState& step : quantiser_.steps())
    steps_
        .declare({.name = step.name,
                  .dims = step.tensor.sizes().vec(),
                  .klass = nn::ParamClass::norm,
                  .decays = false,
                  .is_fp32 = true})
        .value = step.tensor;
  if (!steps_.params().empty()) optimizer_.emplace(optimizer_of_steps(config.optimizer), steps_);
}

double Quantisation::compensation_in(int64_t step) const {
  const double all = static_cast<double>(num_steps_), falling = config_.anneal_fraction * all;
  const double left = all - static_cast<double>(step);
  return falling > 0 ? std::clamp(left / falling, 0.0, 1.0) : 1.0;
}

void Quantisation::begin_step(int64_t step) {
  const bool is_on = step >= config_.start_step;
  quantiser_.set_mode(is_on ? FakeQuantiser::Mode::training : FakeQuantiser::Mode::observing);
  quantiser_.begin_step(step, compensation_in(step));
}

void Quantisation::end_step(int64_t step, const at::Tensor& clip_scale) {
  quantiser_.end_step(clip_scale);
  if (!optimizer_ || step < config_.start_step) return;
  const double lr = config_.range_lr * schedule_factor(schedule_, step, num_steps_);
  optimizer_->step(lr, step - config_.start_step + 1, clip_scale);
}

void Quantisation::release_gradients() {
  if (optimizer_) optimizer_->release_gradients();
}

std::vector<ckpt::TensorGroup> Quantisation::groups() const {
  std::vector<ckpt::TensorGroup> groups;
  ckpt::TensorGroup own{kQuantGroup, {}};
  for (const std::vector<quant::QuantState>& states : {quantiser_.state(), quantiser_.steps()})
    for (const quant::QuantState& state : states) own.tensors.push_back({state.name, state.tensor.detach()});
  if (!own.tensors.empty()) groups.push_back(std::move(own));
  if (optimizer_) groups.push_back({kQuantOptimizerGroup, optimizer_->tensors()});
  return groups;
}

void Quantisation::restore(const ckpt::Checkpoint& checkpoint) {
  std::vector<ckpt::TensorGroup> wanted = groups();
  std::erase_if(wanted, [](const ckpt::TensorGroup& group) { return group.name != kQuantGroup; });
  if (!wanted.empty()) checkpoint.load(wanted);
  quantiser_.restored();
}

}  // namespace moebius::train
