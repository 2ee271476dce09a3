#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "moe/load_statistics.h"
#include "parallel/mesh.h"
#include "telemetry/trace.h"
#include "train/device_batch.h"
#include "train/quantisation.h"

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
  // The last stage has the loss, and each the statistics of its layers.
  if (mesh.layout().size(parallel::Axis::pp) > 1) {
    mesh.on(parallel::Axis::pp).all_reduce(on_device.narrow(0, 0, 1)).wait();
    if (packed.numel() > 0) mesh.on(parallel::Axis::pp).all_reduce(packed).wait();
  }
  sums.copy_(on_device);
  loss = each[0];
  result.num_targets = static_cast<int64_t>(each[1]);
  result.target_bytes = static_cast<int64_t>(each[2]);
}

// Rows of logits that exist at a time.
constexpr int64_t kRowsOfLogits = 512;

// Tells two observers.
class Both final : public nn::RoutingObserver {
 public:
  Both(nn::RoutingObserver& first, nn::RoutingObserver* second) : first_(first), second_(second) {}
  void observe(int64_t layer, const at::Tensor& counts_E, const at::Tensor& entropy,
               const at::Tensor& offsets_E1, int64_t num_slots) override {
    first_.observe(layer, counts_E, entropy, offsets_E1, num_slots);
    if (second_ != nullptr) second_->observe(layer, counts_E, entropy, offsets_E1, num_slots);
  }
  void decided(int64_t layer, const at::Tensor& logits_TE, const at::Tensor& experts_TK,
               const at::Tensor& weights_TK) override {
    first_.decided(layer, logits_TE, experts_TK, weights_TK);
    if (second_ != nullptr) second_->decided(layer, logits_TE, experts_TK, weights_TK);
  }

 private:
  nn::RoutingObserver& first_;
  nn::RoutingObserver* second_;
};

void add_parts(const data::Batch& batch, const at::Tensor& token_loss_T, std::vector<PartLoss>& parts) {
  const at::Tensor host = token_loss_T.to(at::kCPU, at::kFloat).contiguous();
  const float* const loss = host.const_data_ptr<float>();
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    PartLoss part;
    for (int32_t t = batch.cu_seqlens[i]; t < batch.cu_seqlens[i + 1]; ++t) {
      if (batch.targets[static_cast<size_t>(t)] == data::kNoTarget) continue;
      part.loss += static_cast<double>(loss[t]);
      ++part.num_targets;
    }
    if (part.num_targets > 0) parts.push_back(part);
  }
}

at::Tensor likeliest(const nn::Decoder& decoder, const at::Tensor& hidden_TD, const at::Tensor& targets_T) {
  const at::Tensor rows = hidden_TD.index_select(0, targets_T.ne(data::kNoTarget).nonzero().squeeze(1));
  std::vector<at::Tensor> found;
  for (int64_t begin = 0; begin < rows.size(0); begin += kRowsOfLogits)
    found.push_back(
        decoder.logits(rows.slice(0, begin, begin + kRowsOfLogits)).argmax(1).to(at::kCPU, at::kInt));
  return found.empty() ? at::Tensor() : at::cat(found);
}

}  // namespace

Evaluation evaluate(const nn::Decoder& decoder, data::ValidationSet& set, int64_t max_batches,
                    const parallel::Mesh* mesh, const EvaluationDetails& details) {
  const telemetry::Span span("evaluate", "train");
  const at::NoGradGuard no_grad;
  const int64_t count = max_batches > 0 ? std::min(max_batches, set.num_batches()) : set.num_batches();
  moe::LoadStatistics statistics(decoder.config(), decoder.device());
  Both observer(statistics, details.routing);
  nn::ForwardOptions options;
  options.may_drop = false;
  Evaluation result;
  double sum = 0;
  data::Batch batch;
  at::Tensor token_loss_T;
  const int64_t parts = mesh == nullptr ? 1 : mesh->layout().batch_parts();
  const int64_t part = mesh == nullptr ? 0 : mesh->layout().batch_part(mesh->rank());
  // Of ranks that share each sequence one counts the whole, and each has the loss of its part.
  const bool counts_targets = mesh == nullptr || mesh->layout().counts_part(mesh->rank());
  MOEBIUS_CHECK((details.parts == nullptr && details.likeliest_tokens == nullptr) || mesh == nullptr ||
                    mesh->layout().size(parallel::Axis::cp) == 1,
                "details of parts of sequences");
  // All ranks pass equally many batches, because a pass may exchange tokens: those that have none left pass
  // the first again, and do not count it.
  for (int64_t round = 0; round < (count + parts - 1) / parts; ++round) {
    const int64_t i = round * parts + part;
    const bool counts = i < count;
    set.fill(counts ? i : 0, batch);
    options.observer = counts ? &observer : nullptr;
    const nn::TokenBatch tokens = to_device(batch, decoder.device(), mesh, options.with_mtp);
    const at::Tensor hidden_TD = decoder.forward(tokens, options).hidden_TD;
    if (!counts) continue;
    if (counts_targets) {
      result.num_targets += batch.num_targets;
      result.target_bytes += batch.target_bytes;
    }
    if (!hidden_TD.defined()) continue;  // the last stage has it
    sum += decoder.loss(hidden_TD, tokens.targets_T, 1.0, details.parts != nullptr ? &token_loss_T : nullptr)
               .item<double>();
    if (details.parts != nullptr) add_parts(batch, token_loss_T, *details.parts);
    if (details.likeliest_tokens != nullptr)
      details.likeliest_tokens->push_back(likeliest(decoder, hidden_TD, tokens.targets_T));
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

Evaluation evaluate_cached(const nn::Decoder& decoder, data::ValidationSet& set, nn::KvFormat format,
                           int64_t max_batches, const EvaluationDetails& details) {
  const at::NoGradGuard no_grad;
  const int64_t count = max_batches > 0 ? std::min(max_batches, set.num_batches()) : set.num_batches();
  Evaluation result;
  double sum = 0;
  data::Batch batch;
  at::Tensor token_loss_T;
  for (int64_t i = 0; i < count; ++i) {
    set.fill(i, batch);
    const nn::TokenBatch tokens = to_device(batch, decoder.device());
    std::vector<at::Tensor> hidden;
    for (size_t d = 0; d + 1 < batch.cu_seqlens.size(); ++d) {
      const int64_t begin = batch.cu_seqlens[d], length = batch.cu_seqlens[d + 1] - begin;
      if (length == 0) continue;
      nn::KvCache cache = decoder.make_cache(length, format);
      hidden.push_back(decoder.next_hidden(tokens.tokens_T.narrow(0, begin, length), cache));
    }
    const at::Tensor hidden_TD = at::cat(hidden);
    sum += decoder.loss(hidden_TD, tokens.targets_T, 1.0, details.parts != nullptr ? &token_loss_T : nullptr)
               .item<double>();
    if (details.parts != nullptr) add_parts(batch, token_loss_T, *details.parts);
    if (details.likeliest_tokens != nullptr)
      details.likeliest_tokens->push_back(likeliest(decoder, hidden_TD, tokens.targets_T));
    result.num_targets += batch.num_targets;
    result.target_bytes += batch.target_bytes;
  }
  result.loss = result.num_targets > 0 ? sum / static_cast<double>(result.num_targets) : 0;
  result.perplexity = std::exp(result.loss);
  if (result.target_bytes > 0)
    result.bits_per_byte = sum / static_cast<double>(result.target_bytes) / std::numbers::ln2;
  return result;
}

Evaluation evaluate_both(const nn::Decoder& decoder, Quantisation* quantisation, data::ValidationSet& set,
                         int64_t max_batches, const parallel::Mesh* mesh) {
  if (quantisation == nullptr) return evaluate(decoder, set, max_batches, mesh);
  quantisation->evaluate_floats();
  const double float_loss = evaluate(decoder, set, max_batches, mesh).loss;
  quantisation->evaluate_quantised();
  Evaluation result = evaluate(decoder, set, max_batches, mesh);
  result.float_loss = float_loss;
  return result;
}

}  // namespace moebius::train
