#include "nn/generation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/concat.h"
#include "base/philox.h"
#include "ops/linear.h"
#include "quant/product.h"

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

  std::vector<int64_t> candidates(static_cast<size_t>(vocab));
  std::iota(candidates.begin(), candidates.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) {  // of equal ones the lower id
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  if (options.top_k > 0 && options.top_k < vocab) {
    std::nth_element(candidates.begin(), candidates.begin() + options.top_k - 1, candidates.end(), likelier);
    candidates.resize(static_cast<size_t>(options.top_k));
    std::sort(candidates.begin(), candidates.end());
  }
  const float most = logits[*std::min_element(candidates.begin(), candidates.end(), likelier)];
  const auto weight = [&](int64_t token) {
    return std::exp((static_cast<double>(logits[token]) - most) / options.temperature);
  };
  const auto weight_of_all = [&] {
    double sum = 0;
    for (const int64_t token : candidates) sum += weight(token);
    return sum;
  };
  double total = weight_of_all();
  if (options.top_p < 1) {
    // The likeliest come off a heap one by one, so that the others are never sorted.
    const auto less_likely = [&](int64_t a, int64_t b) { return likelier(b, a); };
    std::make_heap(candidates.begin(), candidates.end(), less_likely);
    auto rest = candidates.end();
    double sum = 0;
    do {
      std::pop_heap(candidates.begin(), rest--, less_likely);
      sum += weight(*rest);
    } while (rest != candidates.begin() && sum < options.top_p * total);
    candidates.erase(candidates.begin(), rest);
    std::sort(candidates.begin(), candidates.end());
    total = weight_of_all();
  }
  const double target = Philox(options.seed, "sample").uniform_double(index) * total;
  double sum = 0;
  for (const int64_t token : candidates) {
    sum += weight(token);
    if (target < sum) return token;
  }
  return candidates.back();
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
  GenerationTimes times{.prompt_tokens = static_cast<int64_t>(prompt.size())};
  double begin = steady_seconds();
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
    const double now = steady_seconds();
    (times.tokens++ == 0 ? times.prompt_seconds : times.seconds) += now - begin;
    begin = now;
    if (options.times != nullptr) *options.times = times;
    if (!on_token(tokens.back())) return;
  }
}

WeightBytes weight_bytes(const Decoder& decoder) {
  const config::ModelConfig& config = decoder.config();
  WeightBytes all;
  for (const Param& param : decoder.params().params()) {
    const int64_t bytes = param.product && param.product->num_bytes() > 0
                              ? param.product->num_bytes()
                              : static_cast<int64_t>(param.value.nbytes());
    all.held += bytes;
    if (param.spec.is_product) {
      all.products += bytes;
      all.product_values += param.num_local_elements();
    }
    const bool is_looked_up = param.spec.name == "embedding" && !config.tied_embeddings;  // a row alone
    const bool predicts_further = param.spec.name.starts_with("mtp.") ||
                                  param.spec.name.starts_with(concat("layers.", config.layers, "."));
    if (is_looked_up || predicts_further) continue;
    all.read_per_token += param.spec.klass == ParamClass::expert
                              ? bytes * config.moe.top_k / std::max<int64_t>(config.moe.experts, 1)
                              : bytes;
  }
  return all;
}

}  // namespace moebius::nn
