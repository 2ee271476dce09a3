#include "train/quantised_evaluation.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <map>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "train/device_batch.h"

namespace moebius::train {
namespace {

// The experts of every token, layer by layer.
class Choices final : public nn::RoutingObserver {
 public:
  void observe(int64_t, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t) override {}
  void decided(int64_t layer, const at::Tensor&, const at::Tensor& experts_TK, const at::Tensor&) override {
    // Sorted, so that equal sets are equal rows.
    by_layer_[layer].push_back(std::get<0>(experts_TK.to(at::kCPU).sort(1)));
  }

  // Of decisions and of tokens; nothing where there are none.
  static std::optional<std::pair<double, double>> shares_that_differ(const Choices& a, const Choices& b) {
    double decisions = 0, flipped = 0, tokens = 0, touched = 0;
    const size_t num_batches = a.by_layer_.empty() ? 0 : a.by_layer_.begin()->second.size();
    for (size_t batch = 0; batch < num_batches; ++batch) {
      at::Tensor any_T;
      for (const auto& [layer, experts] : a.by_layer_) {
        const at::Tensor differs_T = experts[batch].ne(b.by_layer_.at(layer)[batch]).any(1);
        decisions += static_cast<double>(differs_T.numel());
        flipped += differs_T.sum().item<double>();
        any_T = any_T.defined() ? any_T.logical_or(differs_T) : differs_T;
      }
      tokens += static_cast<double>(any_T.numel());
      touched += any_T.sum().item<double>();
    }
    if (decisions == 0) return std::nullopt;
    return std::pair(flipped / decisions, touched / tokens);
  }

 private:
  std::map<int64_t, std::vector<at::Tensor>> by_layer_;
};

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 5;
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMost; ++i) text += (i > 0 ? ", " : "") + names[i];
  return names.size() > kMost ? concat(text, " and ", names.size() - kMost, " more") : text;
}

}  // namespace

double error_of_mean(const std::vector<double>& sums, const std::vector<int64_t>& counts) {
  MOEBIUS_CHECK_EQ(sums.size(), counts.size());
  if (sums.size() < 2) return 0;
  double sum = 0, count = 0, squares = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    sum += sums[i];
    count += static_cast<double>(counts[i]);
  }
  for (size_t i = 0; i < sums.size(); ++i)
    squares += std::pow(sums[i] - static_cast<double>(counts[i]) * sum / count, 2);
  const auto n = static_cast<double>(sums.size());
  return std::sqrt(squares * n / (n - 1)) / count;
}

QuantisedEvaluation evaluate_quantised(const nn::Decoder& decoder, Quantisation& quantisation,
                                       data::ValidationSet& set, int64_t max_batches) {
  QuantisedEvaluation result;
  Choices choices, float_choices;
  std::vector<at::Tensor> float_tokens;
  quantisation.evaluate_floats();
  const double float_loss =
      evaluate(decoder, set, max_batches, nullptr, {&result.float_parts, &float_choices, &float_tokens}).loss;
  quantisation.evaluate_quantised();
  result.quantised = evaluate(decoder, set, max_batches, nullptr, {&result.parts, &choices, &result.tokens});
  result.quantised.float_loss = float_loss;

  MOEBIUS_CHECK_EQ(result.parts.size(), result.float_parts.size());
  std::vector<double> sums;
  std::vector<int64_t> counts;
  for (size_t i = 0; i < result.parts.size(); ++i) {
    sums.push_back(result.parts[i].loss - result.float_parts[i].loss);
    counts.push_back(result.parts[i].num_targets);
  }
  result.difference = result.quantised.loss - float_loss;
  result.difference_error = error_of_mean(sums, counts);
  double same = 0;
  for (size_t i = 0; i < result.tokens.size(); ++i)
    if (result.tokens[i].defined()) same += result.tokens[i].eq(float_tokens[i]).sum().item<double>();
  if (result.quantised.num_targets > 0)
    result.same_token = same / static_cast<double>(result.quantised.num_targets);
  if (const auto shares = Choices::shares_that_differ(float_choices, choices)) {
    result.flipped_decisions = shares->first;
    result.flipped_tokens = shares->second;
  }
  return result;
}

void calibrate(const nn::Decoder& decoder, Quantisation& quantisation, data::ValidationSet& set) {
  const int64_t wanted = quantisation.config().calibration_batches;
  if (set.num_batches() < wanted)
    throw_user_error("quant.calibration_batches is ", wanted, ", but the text for calibration has only ",
                     set.num_batches(),
                     " batch(es) of the model's sequence length; name a longer one with "
                     "--calibrate, or lower quant.calibration_batches");
  const at::NoGradGuard no_grad;
  quant::FakeQuantiser& quantiser = quantisation.quantiser();
  quantiser.set_mode(quant::FakeQuantiser::Mode::observing);
  nn::ForwardOptions options;
  options.may_drop = false;
  data::Batch batch;
  for (int64_t i = 0; i < wanted; ++i) {
    set.fill(i, batch);
    decoder.forward(to_device(batch, decoder.device()), options);
    quantiser.observed_pass();
  }
  quantiser.set_mode(quant::FakeQuantiser::Mode::evaluating);
  if (const std::vector<std::string> names = quantiser.products_without_range(); !names.empty())
    throw_user_error("no finite range for ", listed(names),
                     ": its values are not finite or all zero on the text for calibration; go on from an "
                     "earlier checkpoint, or leave its class out of quant.classes");
}

}  // namespace moebius::train
