// Shapes: T tokens, D model width, V vocabulary, P positions, d head width.
#include "nn/decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>

#include <algorithm>

#include "base/concat.h"
#include "nn/recompute.h"
#include "ops/linear.h"
#include "ops/linear_loss.h"
#include "ops/norm.h"

namespace moebius::nn {
namespace {

kernels::QkNorm qk_norm_of(const std::string& word) {
  if (word == "head") return kernels::QkNorm::head;
  return word == "full" ? kernels::QkNorm::full : kernels::QkNorm::none;
}

AttentionOptions attention_options(const config::ModelConfig& config) {
  AttentionOptions options;
  options.dim = config.dim;
  options.num_heads = config.heads;
  options.num_kv_heads = config.kv_heads;
  options.head_dim = config.head_dim > 0 ? config.head_dim : config.dim / config.heads;
  options.qk_norm = qk_norm_of(config.qk_norm);
  options.norm_eps = config.norm_eps;
  options.init_std = config.init_std;
  options.out_std = config.init_std * config.output_init_scale;
  return options;
}

Param& declare_norm(ParamTable& params, const std::string& name, int64_t dim) {
  return params.declare(
      {.name = name, .dims = {dim}, .klass = ParamClass::norm, .init = Init::ones(), .decays = false});
}

// sum = x + delta (x alone without delta) and its norm.
std::pair<at::Tensor, at::Tensor> add_norm(const at::Tensor& x_TD, const at::Tensor& delta_TD,
                                           const Param& weight, double eps) {
  if (!delta_TD.defined()) return {x_TD, ops::rms_norm(x_TD, weight.value, eps)};
  return ops::add_rms_norm(x_TD, delta_TD, weight.value, eps);
}

void add_loss(at::Tensor& sum, const at::Tensor& loss) {
  if (loss.defined()) sum = sum.defined() ? sum + loss : loss;
}

}  // namespace

struct Decoder::Block {
  Block(const config::ModelConfig& config, const FeedForwardFactory& factory, int64_t layer,
        ParamTable& params)
      : attention_norm(declare_norm(params, concat("layers.", layer, ".attention_norm"), config.dim)),
        attention(attention_options(config), concat("layers.", layer, ".attention."), params),
        ffn_norm(declare_norm(params, concat("layers.", layer, ".ffn_norm"), config.dim)),
        feed_forward(factory(layer, concat("layers.", layer, "."), params)),
        eps(config.norm_eps) {}

  Param& attention_norm;
  Attention attention;
  Param& ffn_norm;
  std::unique_ptr<FeedForward> feed_forward;
  double eps;
};

Decoder::Decoder(const config::ModelConfig& config, const FeedForwardFactory& factory)
    : config_(config), head_dim_(attention_options(config).head_dim) {
  embedding_ = &params_.declare({.name = "embedding",
                                 .dims = {config.vocab, config.dim},
                                 .klass = ParamClass::embedding,
                                 .sharding = {.tp = 0},
                                 .init = Init::normal(config.init_std)});
  for (int64_t layer = 0; layer < config.layers; ++layer)
    blocks_.push_back(std::make_unique<Block>(config, factory, layer, params_));
  final_norm_ = &declare_norm(params_, "final_norm", config.dim);
  if (!config.tied_embeddings)
    output_ = &params_.declare({.name = "output",
                                .dims = {config.vocab, config.dim},
                                .klass = ParamClass::embedding,
                                .sharding = {.tp = 0},
                                .init = Init::normal(config.init_std)});
}

Decoder::~Decoder() = default;

void Decoder::need_positions(int64_t count) const {
  if (cos_sin_PD_.defined() && cos_sin_PD_.size(0) >= count) return;
  const int64_t doubled = cos_sin_PD_.defined() ? 2 * cos_sin_PD_.size(0) : 0;
  const at::NoGradGuard no_grad;
  cos_sin_PD_ = ops::rope_table(std::max(count, doubled), head_dim_, config_.rope_theta, device());
}

DecoderOutput Decoder::forward(const TokenBatch& batch, const ForwardOptions& options) const {
  need_positions(batch.max_position);
  const auto probe = [&](const std::string& name, const at::Tensor& value) {
    if (options.probe && value.defined()) options.probe(name, value);
  };
  FeedForwardContext context;
  context.sequence_of_T = batch.sequence_of_T;
  context.num_sequences = batch.num_sequences;
  context.recompute = options.recompute == Recompute::selective;
  context.with_losses = options.with_losses;
  context.may_drop = options.may_drop;
  context.observer = options.observer;

  DecoderOutput output;
  Stream stream{at::embedding(embedding_->value, batch.tokens_T), {}};
  probe("embedding", stream.x_TD);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = *blocks_[layer];
    const auto run = [&block, &cos_sin = cos_sin_PD_, batch, context](const Stream& in, const auto& look) {
      const auto [x_TD, attention_in_TD] = add_norm(in.x_TD, in.delta_TD, block.attention_norm, block.eps);
      const at::Tensor attention_TD =
          block.attention.forward(attention_in_TD, batch.positions_T, cos_sin, batch.documents);
      look("attention", attention_TD);
      const auto [sum_TD, ffn_in_TD] = add_norm(x_TD, attention_TD, block.ffn_norm, block.eps);
      FeedForwardContext own = context;
      if (recomputing()) own.observer = nullptr;
      const FeedForwardResult ffn = block.feed_forward->forward(ffn_in_TD, own);
      look("feed_forward", ffn.y_TD);
      return std::vector<at::Tensor>{sum_TD, ffn.y_TD, ffn.balance_loss};
    };
    std::vector<at::Tensor> out;
    if (options.recompute == Recompute::full) {
      std::vector<at::Tensor> in{stream.x_TD};
      if (stream.delta_TD.defined()) in.push_back(stream.delta_TD);
      out = recompute(in, [run](const std::vector<at::Tensor>& inputs) {
        std::vector<at::Tensor> result = run(Stream{inputs[0], inputs.size() > 1 ? inputs[1] : at::Tensor()},
                                             [](const char*, const at::Tensor&) {});
        if (!result[2].defined()) result.pop_back();
        return result;
      });
      out.resize(3);
    } else {
      out = run(stream, [&](const char* part, const at::Tensor& value) {
        probe(concat("layers.", layer, ".", part), value);
      });
    }
    stream = {out[0], out[1]};
    add_loss(output.balance_loss, out[2]);
  }
  output.hidden_TD = add_norm(stream.x_TD, stream.delta_TD, *final_norm_, config_.norm_eps).second;
  probe("final_norm", output.hidden_TD);
  return output;
}

at::Tensor Decoder::loss(const at::Tensor& hidden_TD, const at::Tensor& targets_T, double scale,
                         at::Tensor* token_loss_T) const {
  return ops::linear_cross_entropy(hidden_TD, output_weight(), targets_T, scale, token_loss_T);
}

at::Tensor Decoder::logits(const at::Tensor& hidden_TD) const {
  return ops::linear(hidden_TD, output_weight()).to(at::kFloat);
}

at::Tensor Decoder::next_logits(const at::Tensor& tokens_T, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  const int64_t count = tokens_T.size(0), before = cache.length();
  need_positions(before + count);
  const at::Tensor positions_T =
      at::arange(before, before + count, at::TensorOptions().dtype(at::kInt).device(device()));
  FeedForwardContext context;
  context.may_drop = false;
  Stream stream{at::embedding(embedding_->value, tokens_T), {}};
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = *blocks_[layer];
    const auto [x_TD, attention_in_TD] =
        add_norm(stream.x_TD, stream.delta_TD, block.attention_norm, block.eps);
    const at::Tensor attention_TD = block.attention.forward_cached(attention_in_TD, positions_T, cos_sin_PD_,
                                                                   static_cast<int64_t>(layer), cache);
    const auto [sum_TD, ffn_in_TD] = add_norm(x_TD, attention_TD, block.ffn_norm, block.eps);
    stream = {sum_TD, block.feed_forward->forward(ffn_in_TD, context).y_TD};
  }
  cache.advance(count);
  const at::Tensor last_1D = stream.x_TD.narrow(0, count - 1, 1),
                   delta_1D = stream.delta_TD.narrow(0, count - 1, 1);
  const at::Tensor hidden_1D = add_norm(last_1D, delta_1D, *final_norm_, config_.norm_eps).second;
  return logits(hidden_1D).squeeze(0);
}

KvCache Decoder::make_cache(int64_t capacity) const {
  return {config_.layers, capacity, config_.kv_heads, head_dim_, embedding_->value.options()};
}

}  // namespace moebius::nn
