#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe/load_statistics.h"
#include "parallel/mesh.h"
#include "telemetry/trace.h"
#include "train/device_batch.h"

namespace moebius::train {
namespace {

// Loss, counts and load statistics of all ranks.
void sum_over_ranks(const parallel::Mesh& mesh, double& loss, Evaluation& result, const at::Tensor& packed) {
  // Counts below 2^53 are exact.
  const at::Tensor sums = at::empty({3}, at::kDouble);
  double* const each = sums.mutable_data_ptr<double>();
  each[0] = loss;
  each[1] = static_cast<double>(result.num_targets);
  each[2] = static_cast<double>(result.target_bytes);
  const at::Tensor on_device = sums.to(packed.device());
  mesh.data().all_reduce(on_device).wait();
  if (packed.numel() > 0) mesh.data().all_reduce(packed).wait();
  sums.copy_(on_device);
  loss = each[0];
  result.num_targets = static_cast<int64_t>(each[1]);
  result.target_bytes = static_cast<int64_t>(each[2]);
}

}  // namespace

Evaluation evaluate(const nn::Decoder& decoder, data::ValidationSet& set, int64_t max_batches,
                    const parallel::Mesh* mesh) {
  const telemetry::Span span("evaluate", "train");
  const at::NoGradGuard no_grad;
  const int64_t count = max_batches > 0 ? std::min(max_batches, set.num_batches()) : set.num_batches();
  moe::LoadStatistics statistics(decoder.config(), decoder.device());
  nn::ForwardOptions options;
  options.may_drop = false;
  Evaluation result;
  double sum = 0;
  data::Batch batch;
  const int64_t parts = mesh == nullptr ? 1 : mesh->layout().batch_parts();
  const int64_t part = mesh == nullptr ? 0 : mesh->layout().batch_part(mesh->rank());
  // All ranks pass equally many batches, because a pass may exchange tokens: those that have none left pass
  // the first again, and do not count it.
  for (int64_t round = 0; round < (count + parts - 1) / parts; ++round) {
    const int64_t i = round * parts + part;
    const bool counts = i < count;
    set.fill(counts ? i : 0, batch);
    options.observer = counts ? &statistics : nullptr;
    const nn::TokenBatch tokens = to_device(batch, decoder.device());
    const at::Tensor hidden_TD = decoder.forward(tokens, options).hidden_TD;
    if (!counts) continue;
    sum += decoder.loss(hidden_TD, tokens.targets_T, 1.0).item<double>();
    result.num_targets += batch.num_targets;
    result.target_bytes += batch.target_bytes;
  }
  if (mesh != nullptr) sum_over_ranks(*mesh, sum, result, statistics.packed());
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
