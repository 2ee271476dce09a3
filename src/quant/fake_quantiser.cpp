#include "quant/fake_quantiser.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "ops/linear.h"
#include "quant/fake_quant.h"
#include "quant/format.h"
#include "quant/routed_steps.h"

namespace moebius::quant {
namespace {

constexpr int kMicroBits = 16;  // of a pass's number; the step has the others
// Values, in whole rows at equal distances, that a static range is chosen from; all for the largest
// magnitude.
constexpr int64_t kMostSampled = 1 << 16;

using Mode = FakeQuantiser::Mode;
using Compensation = FakeQuantiserOptions::Compensation;

bool is_known(const at::Tensor& range) {
  return at::isfinite(range).logical_and(range.gt(0)).any().item<bool>();
}

at::Tensor log_of_step(const at::Tensor& range, int bits) {
  // An empty expert or a row of zeros gets some small step that it can grow from.
  return scales_of(range, bits).clamp_min(1e-12).log();
}

}  // namespace

struct FakeQuantiser::Context {
  FakeQuantiserOptions options;
  Mode mode = Mode::evaluating;
  double compensation = 0;
  int64_t step = 0, micro = 0;
  uint64_t epoch = 0;  // changes when weights may have changed

  bool floats() const { return mode == Mode::floating || mode == Mode::observing; }
  bool sees() const { return mode == Mode::training || mode == Mode::observing; }
  bool is_noisy() const {
    return mode == Mode::training && compensation > 0 && options.share > 0 &&
           (options.compensation == Compensation::uniform || options.compensation == Compensation::gaussian);
  }
  std::optional<NoisePlan> noise_for(const std::string& name) const {
    if (!is_noisy()) return std::nullopt;
    const auto pass = static_cast<uint64_t>(step) << kMicroBits | static_cast<uint64_t>(micro);
    return NoisePlan{{options.seed, name, pass},
                     options.compensation == Compensation::uniform ? NoiseKind::uniform : NoiseKind::gaussian,
                     options.share * compensation};
  }
};

// Where activations enter a product.
class FakeQuantiser::Site {
 public:
  Site(std::shared_ptr<const Context> context, std::string name, int64_t width, const at::Tensor& like)
      : context_(std::move(context)), name_(std::move(name)), width_(width) {
    const FakeQuantiserOptions& options = context_->options;
    if (options.activation_bits == 0 || options.per_token) return;
    const auto fp32 = like.options().dtype(at::kFloat).requires_grad(false);
    seen_ = at::zeros({}, fp32);
    if (options.learned) {
      log_step_ = at::full({}, std::nan(""), fp32).set_requires_grad(true);
    } else {
      range_ = at::zeros({}, fp32);
    }
  }

  const std::string& name() const { return name_; }

  // x as the product sees it.
  at::Tensor apply(const at::Tensor& x) const {
    const FakeQuantiserOptions& options = context_->options;
    if (options.activation_bits == 0) return x;
    FakeQuantOptions rounding;
    rounding.bits = options.activation_bits;
    if (options.noisy_activations) rounding.noise = context_->noise_for(name_);
    if (options.per_token) {
      if (context_->floats()) return x;
      rounding.clips = false;
      return fake_quantise(x, scales_of(range_of(x, Granularity::per_row), rounding.bits), rounding);
    }
    const bool is_running = context_->sees() && !log_step_.defined();
    const at::Tensor own = is_running || !known_ ? observed(x) : at::Tensor();
    if (context_->floats()) return x;
    if (!known_) return fake_quantise(x, scales_of(own, rounding.bits), rounding);
    if (!log_step_.defined()) return fake_quantise(x, scales_of(range_, rounding.bits), rounding);
    rounding.step_gradient_scale = lsq_gradient_scale(width_, rounding.bits);
    return fake_quantise(x, log_step_.exp(), rounding);
  }

  void end_step(const at::Tensor& is_fine) {
    if (!seen_.defined()) return;
    const at::Tensor fine = at::isfinite(seen_).logical_and_(seen_.gt(0)).logical_and_(is_fine);
    if (log_step_.defined()) {
      if (!known_ && fine.item<bool>()) {
        log_step_.copy_(log_of_step(seen_, context_->options.activation_bits));
        known_ = true;
      }
    } else {
      const double momentum = known_ ? context_->options.momentum : 0;
      range_.copy_(at::where(fine, range_ * momentum + seen_ * (1 - momentum), range_));
      if (!known_) known_ = is_known(range_);
    }
    seen_.zero_();
  }

  void observed_pass() {
    if (!seen_.defined()) return;
    if (at::isfinite(seen_).logical_and_(seen_.gt(0)).item<bool>()) {
      ++num_passes_;
      const bool is_largest = !context_->options.learned && context_->options.range.rule == RangeRule::minmax;
      const at::Tensor before = log_step_.defined() ? log_range() : range_;
      const at::Tensor range = num_passes_ == 1 ? seen_
                               : is_largest     ? at::maximum(before, seen_)
                                                : before + (seen_ - before) / num_passes_;
      if (log_step_.defined()) {
        log_step_.copy_(log_of_step(range, context_->options.activation_bits));
      } else {
        range_.copy_(range);
      }
      known_ = true;
    }
    seen_.zero_();
  }

  bool needs_range() const { return seen_.defined() && !known_; }
  void restored() {
    if (seen_.defined())
      known_ = log_step_.defined() ? at::isfinite(log_step_).item<bool>() : is_known(range_);
  }
  void add_to(std::vector<QuantState>& states) const {
    if (range_.defined()) states.push_back({"range." + name_, range_});
  }
  void add_step_to(std::vector<QuantState>& steps) const {
    if (log_step_.defined()) steps.push_back({"step." + name_, log_step_});
  }

 private:
  // The range of these values; running ranges see it. A pass that is made twice sees the same again.
  at::Tensor observed(const at::Tensor& x) const {
    RangeOptions range = context_->options.range;
    range.bits = context_->options.activation_bits;
    if (context_->options.learned) range.rule = RangeRule::mse;
    const bool samples = range.rule != RangeRule::minmax && x.numel() > kMostSampled && x.size(0) > 1;
    const int64_t stride = samples ? (x.numel() + kMostSampled - 1) / kMostSampled : 1;
    const at::Tensor own = chosen_range(x.slice(0, 0, x.size(0), stride), Sharing::all, range);
    if (context_->sees()) seen_.copy_(at::maximum(seen_, own));
    return own;
  }
  at::Tensor log_range() const {
    return log_step_.detach().exp() * kernels::levels_of_bits(context_->options.activation_bits);
  }

  std::shared_ptr<const Context> context_;
  std::string name_;
  int64_t width_;
  at::Tensor range_, log_step_, seen_;
  int64_t num_passes_ = 0;
  bool known_ = false;
};

class FakeQuantiser::Weight final : public Product {
 public:
  Weight(std::shared_ptr<const Context> context, const std::string& name, const at::Tensor& weight)
      : context_(context),
        name_(name),
        weight_(weight),
        input_(context, name + ".input", weight.size(-1), weight) {
    const FakeQuantiserOptions& options = context->options;
    const auto fp32 = weight.options().dtype(at::kFloat).requires_grad(false);
    if (options.compensation == Compensation::feedback) error_ = at::zeros(weight.sizes(), fp32);
    if (!options.learned) return;
    const at::NoGradGuard no_grad;
    log_step_ = at::full_like(chosen_range(weight.detach(), options.weight_sharing, {}), std::nan(""));
    log_step_.set_requires_grad(true);
  }

  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const override {
    const at::Tensor seen = input_.apply(x);
    return ops::linear(seen, quantised(weight_NK));
  }

  at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                        bool recompute) const override {
    const auto* const down = dynamic_cast<const Weight*>(experts.down_product);
    MOEBIUS_CHECK(down != nullptr, "the experts' products differ: ", name_);
    if (context_->mode == Mode::floating) {
      ExpertWeights floats = experts;
      floats.gate_up_product = floats.down_product = nullptr;
      return quant::expert_ffn(x_TD, routing, floats, recompute);
    }
    const at::Tensor gate_up_R2F =
        product_of_tokens(input_.apply(x_TD), quantised(experts.gate_up_E2FD), routing);
    const at::Tensor act_RF = down->input_.apply(activated(gate_up_R2F, experts.form, routing));
    const at::Tensor y_RD = product_of_rows(act_RF, down->quantised(experts.down_EDF), routing);
    return combined(y_RD, experts.form, routing);
  }

  at::Tensor values(const at::Tensor& weight) const override {
    const at::NoGradGuard no_grad;
    return quantised(weight);
  }

  void begin_step() {
    if (!log_step_.defined() || known_) return;
    const at::NoGradGuard no_grad;
    log_step_.copy_(log_of_step(range(weight_), context_->options.weight_bits));
    known_ = true;
  }
  void end_step(const at::Tensor& is_fine) {
    input_.end_step(is_fine);
    if (!error_.defined() || context_->mode != Mode::training) return;
    const at::Tensor meant = weight_.detach().to(at::kFloat) + error_ * context_->compensation;
    const at::Tensor error =
        meant - rounded_to_codes(meant, step(weight_.detach()).detach(), context_->options.weight_bits);
    error_.copy_(at::where(is_fine, error, error_));
  }
  Site& input() { return input_; }
  const Site& input() const { return input_; }
  void restored() {
    if (log_step_.defined()) known_ = at::isfinite(log_step_).all().item<bool>();
    input_.restored();
  }
  void add_to(std::vector<QuantState>& states) const {
    if (error_.defined()) states.push_back({"error." + name_, error_});
    input_.add_to(states);
  }
  void add_step_to(std::vector<QuantState>& steps) const {
    if (log_step_.defined()) steps.push_back({"step." + name_, log_step_});
    input_.add_step_to(steps);
  }
  const std::string& name() const { return name_; }
  void release() { evaluated_.reset(); }
  bool has_finite_range() const { return at::isfinite(weight_).all().item<bool>(); }

 private:
  at::Tensor range(const at::Tensor& weight) const {
    if (range_epoch_ == context_->epoch && range_.defined()) return range_;
    RangeOptions options = context_->options.range;
    options.bits = context_->options.weight_bits;
    if (context_->options.learned) options.rule = RangeRule::mse;
    range_ = chosen_range(weight, context_->options.weight_sharing, options);
    range_epoch_ = context_->epoch;
    return range_;
  }
  at::Tensor step(const at::Tensor& weight) const {
    return known_ ? log_step_.exp() : scales_of(range(weight), context_->options.weight_bits);
  }

  // The weight as the product sees it.
  at::Tensor quantised(const at::Tensor& weight) const {
    if (context_->floats()) return weight;
    const bool keeps = context_->mode == Mode::evaluating && !at::GradMode::is_enabled();
    if (keeps && evaluated_.defined()) return evaluated_;
    const at::Tensor result = rounded(weight);
    if (keeps) evaluated_ = result;
    return result;
  }
  at::Tensor rounded(const at::Tensor& weight) const {
    const FakeQuantiserOptions& options = context_->options;
    FakeQuantOptions rounding;
    rounding.bits = options.weight_bits;
    rounding.noise = context_->noise_for(name_);
    rounding.clips = options.learned || options.range.rule != RangeRule::minmax;
    const at::Tensor step = this->step(weight);
    if (known_)
      rounding.step_gradient_scale = lsq_gradient_scale(weight.numel() / step.numel(), rounding.bits);
    at::Tensor carried;
    if (error_.defined() && context_->mode == Mode::training && context_->compensation > 0)
      carried = error_ * context_->compensation;
    return fake_quantise(weight, step, rounding, carried);
  }

  std::shared_ptr<const Context> context_;
  std::string name_;
  at::Tensor weight_;
  Site input_;
  at::Tensor log_step_, error_;
  bool known_ = false;            // the learned steps have values
  mutable at::Tensor range_;      // of this epoch
  mutable at::Tensor evaluated_;  // the weight in mode `evaluating`, kept for the passes of a generation
  mutable uint64_t range_epoch_ = std::numeric_limits<uint64_t>::max();
};

FakeQuantiser::FakeQuantiser(const FakeQuantiserOptions& options) : context_(std::make_shared<Context>()) {
  context_->options = options;
}

FakeQuantiser::~FakeQuantiser() = default;

std::shared_ptr<const Product> FakeQuantiser::add(const std::string& name, const at::Tensor& weight) {
  weights_.push_back(std::make_shared<Weight>(context_, name, weight));
  return weights_.back();
}

FakeQuantiser::Mode FakeQuantiser::mode() const {
  return context_->mode;
}

void FakeQuantiser::set_mode(Mode mode) {
  context_->mode = mode;
  ++context_->epoch;
  for (const std::shared_ptr<Weight>& weight : weights_) weight->release();
}

void FakeQuantiser::begin_step(int64_t step, double compensation) {
  context_->step = step;
  context_->micro = 0;
  context_->compensation = compensation;
  ++context_->epoch;
  if (context_->mode != Mode::training) return;
  for (const std::shared_ptr<Weight>& weight : weights_) weight->begin_step();
}

void FakeQuantiser::begin_micro(int64_t micro) {
  MOEBIUS_CHECK_LT(micro, int64_t{1} << kMicroBits);
  context_->micro = micro;
}

void FakeQuantiser::end_step(const at::Tensor& clip_scale) {
  const at::NoGradGuard no_grad;
  const at::Tensor is_fine = at::isfinite(clip_scale).squeeze();
  for (const std::shared_ptr<Weight>& weight : weights_) weight->end_step(is_fine);
}

void FakeQuantiser::observed_pass() {
  const at::NoGradGuard no_grad;
  for (const std::shared_ptr<Weight>& weight : weights_) weight->input().observed_pass();
}

bool FakeQuantiser::ranges_are_known() const {
  for (const std::shared_ptr<Weight>& weight : weights_)
    if (weight->input().needs_range()) return false;
  return true;
}

std::vector<std::string> FakeQuantiser::products_without_range() const {
  std::vector<std::string> names;
  for (const std::shared_ptr<Weight>& weight : weights_) {
    if (!weight->has_finite_range()) names.push_back(weight->name());
    if (weight->input().needs_range()) names.push_back(weight->input().name());
  }
  return names;
}

std::vector<QuantState> FakeQuantiser::state() const {
  std::vector<QuantState> states;
  for (const std::shared_ptr<Weight>& weight : weights_) weight->add_to(states);
  return states;
}

std::vector<QuantState> FakeQuantiser::steps() const {
  std::vector<QuantState> steps;
  for (const std::shared_ptr<Weight>& weight : weights_) weight->add_step_to(steps);
  return steps;
}

void FakeQuantiser::restored() {
  for (const std::shared_ptr<Weight>& weight : weights_) weight->restored();
}

}  // namespace moebius::quant
