#include "nn/generation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/philox.h"
#include "ops/linear.h"

namespace moebius::nn {
namespace {

// Logits after the last of `tokens`, by a pass over all of them.
at::Tensor logits_without_cache(const Decoder& decoder, const std::vector<int64_t>& tokens) {
  const at::NoGradGuard no_grad;
  const auto count = static_cast<int64_t>(tokens.size());
  const auto ints = at::TensorOptions().dtype(at::kInt).device(decoder.device());
  TokenBatch batch;
  batch.tokens_T = at::tensor(tokens, at::TensorOptions().dtype(at::kLong)).to(decoder.device());
  batch.positions_T = at::arange(count, ints);
  batch.documents.cu_seqlens = {0, static_cast<int32_t>(count)};
  batch.documents.max_length = count;
  batch.max_position = count;
  ForwardOptions options;
  options.may_drop = false;
  const at::Tensor hidden_TD = decoder.of_all_tokens(decoder.forward(batch, options).hidden_TD, count);
  return decoder.logits(hidden_TD.narrow(0, count - 1, 1)).squeeze(0);
}

}  // namespace

int64_t sample_token(const at::Tensor& logits_V, const SamplingOptions& options, uint64_t index) {
  MOEBIUS_CHECK(logits_V.is_cpu() && logits_V.scalar_type() == at::kFloat && logits_V.is_contiguous());
  const float* logits = logits_V.const_data_ptr<float>();
  const int64_t vocab = logits_V.numel();
  if (options.temperature == 0) return std::max_element(logits, logits + vocab) - logits;

  // Candidates, likeliest first; equal ones by id.
  std::vector<int64_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  int64_t kept = options.top_k > 0 ? std::min(options.top_k, vocab) : vocab;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);
  order.resize(static_cast<size_t>(kept));

  std::vector<double> weight(order.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weight[i] = std::exp((static_cast<double>(logits[order[i]]) - logits[order[0]]) / options.temperature);
    total += weight[i];
  }
  if (options.top_p < 1) {
    double sum = 0;
    size_t count = 0;
    while (count < weight.size() && (count == 0 || sum < options.top_p * total)) sum += weight[count++];
    weight.resize(count);
    total = sum;
  }
  const double target = Philox(options.seed, "sample").uniform_double(index) * total;
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) {
    sum += weight[i];
    if (target < sum) return order[i];
  }
  return order[weight.size() - 1];
}

void generate(const Decoder& decoder, const std::vector<int64_t>& prompt, const GenerateOptions& options,
              const std::function<bool(int64_t token)>& on_token) {
  MOEBIUS_CHECK(!prompt.empty(), "an empty prompt");
  const auto longs = at::TensorOptions().dtype(at::kLong);
  std::vector<int64_t> tokens = prompt;
  std::optional<KvCache> cache;
  if (options.use_cache)
    cache.emplace(
        decoder.make_cache(static_cast<int64_t>(prompt.size()) + options.max_tokens, options.cache));
  size_t passed = 0;  // tokens in the cache
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    at::Tensor logits_V;
    if (cache) {
      const std::vector<int64_t> rest(tokens.begin() + static_cast<int64_t>(passed), tokens.end());
      logits_V = decoder.next_logits(at::tensor(rest, longs).to(decoder.device()), *cache);
      passed = tokens.size();
    } else {
      logits_V = logits_without_cache(decoder, tokens);
    }
    tokens.push_back(sample_token(logits_V.cpu(), options.sampling, static_cast<uint64_t>(i)));
    if (!on_token(tokens.back())) return;
  }
}

}  // namespace moebius::nn
