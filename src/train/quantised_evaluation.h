// What quantised products cost a model: its loss with and without them, token by token on the same text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "data/batches.h"
#include "nn/decoder.h"
#include "train/evaluate.h"
#include "train/quantisation.h"

namespace moebius::train {

struct QuantisedEvaluation {
  Evaluation quantised;               // with float_loss
  std::vector<PartLoss> parts;        // with quantised products
  std::vector<PartLoss> float_parts;  // of the same targets, without
  std::vector<at::Tensor> tokens;     // with quantised products: EvaluationDetails::likeliest_tokens
  // quantised.loss - float_loss, nats per token, and its standard error: of the mean over the parts of
  // documents, which are taken as independent.
  double difference = 0, difference_error = 0;
  double same_token = 0;  // share of the targets for which the likeliest token is the same
  // Of all decisions of routed layers (token by layer): the share whose set of experts differs; of the
  // tokens: the share for which some layer's does. Nothing without experts.
  std::optional<double> flipped_decisions, flipped_tokens;
};

QuantisedEvaluation evaluate_quantised(const nn::Decoder& decoder, Quantisation& quantisation,
                                       data::ValidationSet& set, int64_t max_batches = 0);

// Takes remembered ranges from the first quant.calibration_batches batches of the set, without quantisation.
// UserError when there are fewer, or naming products whose range is not finite.
void calibrate(const nn::Decoder& decoder, Quantisation& quantisation, data::ValidationSet& set);

// sqrt of the variance of sum(d) / sum(n) over independent parts with the sums d of n targets each (the usual
// estimate for a ratio). 0 for fewer than two parts.
double error_of_mean(const std::vector<double>& sums, const std::vector<int64_t>& counts);

}  // namespace moebius::train
