#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe/load_statistics.h"
#include "telemetry/trace.h"
#include "train/device_batch.h"

namespace moebius::train {

Evaluation evaluate(const nn::Decoder& decoder, data::ValidationSet& set, int64_t max_batches) {
  const telemetry::Span span("evaluate", "train");
  const at::NoGradGuard no_grad;
  const int64_t count = max_batches > 0 ? std::min(max_batches, set.num_batches()) : set.num_batches();
  moe::LoadStatistics statistics(decoder.config(), decoder.device());
  nn::ForwardOptions options;
  options.may_drop = false;
  options.observer = &statistics;
  Evaluation result;
  double sum = 0;
  data::Batch batch;
  for (int64_t i = 0; i < count; ++i) {
    set.fill(i, batch);
    const nn::TokenBatch tokens = to_device(batch, decoder.device());
    const at::Tensor hidden_TD = decoder.forward(tokens, options).hidden_TD;
    sum += decoder.loss(hidden_TD, tokens.targets_T, 1.0).item<double>();
    result.num_targets += batch.num_targets;
    result.target_bytes += batch.target_bytes;
  }
  result.loss = result.num_targets > 0 ? sum / static_cast<double>(result.num_targets) : 0;
  result.perplexity = std::exp(result.loss);
  if (result.target_bytes > 0)
    result.bits_per_byte = sum / static_cast<double>(result.target_bytes) / std::numbers::ln2;
  if (!statistics.empty() && count > 0)
    for (const moe::LayerLoad& layer : statistics.unpack(statistics.packed().cpu(), count))
      result.max_violation = std::max(result.max_violation, layer.max_violation);
  return result;
}

}  // namespace moebius::train
