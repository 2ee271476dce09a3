// Shapes: T tokens, D model width, V vocabulary, P positions, d head width.
#include "nn/decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "base/check.h"
#include "base/concat.h"
#include "nn/multi_token.h"
#include "nn/param_gate.h"
#include "nn/recompute.h"
#include "ops/linear.h"
#include "ops/linear_loss.h"
#include "ops/rope.h"

namespace moebius::nn {
namespace {

Param& declare_norm(ParamTable& params, const std::string& name, int64_t dim) {
  return params.declare({.name = name,
                         .dims = {dim},
                         .klass = ParamClass::norm,
                         .sharding = {.stream = 0},
                         .init = Init::ones(),
                         .decays = false});
}

// sum = x + delta (x alone without delta) and its norm.
std::pair<at::Tensor, at::Tensor> add_norm(const at::Tensor& x_TD, const at::Tensor& delta_TD,
                                           const Param& param, const TensorAxis* axis, double eps) {
  return nn::add_norm(axis, x_TD, delta_TD, param.value, eps);
}

void add_loss(at::Tensor& sum, const at::Tensor& loss) {
  if (loss.defined()) sum = sum.defined() ? sum + loss : loss;
}

void add_rows(at::Tensor& all, const at::Tensor& rows) {
  all = all.defined() ? at::cat({all, rows}) : rows;
}

}  // namespace

struct Decoder::Block {
  Block(const config::ModelConfig& config, const FeedForwardFactory& factory, int64_t layer,
        ParamTable& params, const TensorAxis* tensor_axis, const ContextAxis* context)
      : attention_norm(declare_norm(params, concat("layers.", layer, ".attention_norm"), config.dim)),
        attention(make_attention(config, layer, concat("layers.", layer, ".attention."), params, tensor_axis,
                                 context)),
        ffn_norm(declare_norm(params, concat("layers.", layer, ".ffn_norm"), config.dim)),
        feed_forward(factory(layer, concat("layers.", layer, "."), params)),
        axis(tensor_axis),
        eps(config.norm_eps) {}

  Param& attention_norm;
  std::unique_ptr<SelfAttention> attention;
  Param& ffn_norm;
  std::unique_ptr<FeedForward> feed_forward;
  const TensorAxis* axis;
  double eps;
};

Decoder::Decoder(const config::ModelConfig& config, const FeedForwardFactory& factory,
                 std::shared_ptr<const TensorAxis> axis, std::shared_ptr<const DecoderPieces> pieces,
                 std::shared_ptr<const ContextAxis> context)
    : config_(config),
      axis_(std::move(axis)),
      context_(std::move(context)),
      pieces_(std::move(pieces)),
      rope_scaling_(rope_scaling(config.rope)) {
  const bool has_first = !pieces_ || pieces_->has_first(), has_last = !pieces_ || pieces_->has_last();
  const auto declare_vocabulary = [&](const char* name) {
    return &params_.declare({.name = name,
                             .dims = {config.vocab, config.dim},
                             .klass = ParamClass::embedding,
                             .sharding = {.tp = 0, .grid = 1},
                             .init = Init::normal(config.init_std)});
  };
  if (has_first || (has_last && is_embedding_shared(config, pieces_->stages)))
    embedding_ = declare_vocabulary("embedding");
  blocks_.resize(static_cast<size_t>(config.layers));
  for (int64_t layer = 0; layer < config.layers; ++layer)
    if (!pieces_ || pieces_->has_layer(layer))
      blocks_[static_cast<size_t>(layer)] =
          std::make_unique<Block>(config, factory, layer, params_, axis_.get(), context_.get());
  if (!has_last) return;
  final_norm_ = &declare_norm(params_, "final_norm", config.dim);
  if (!config.tied_embeddings) output_ = declare_vocabulary("output");
  if (config.mtp.depth == 0) return;
  mtp_ = std::make_unique<MultiToken>(config.dim, config.norm_eps, config.init_std, params_, axis_.get());
  blocks_.push_back(
      std::make_unique<Block>(config, factory, config.layers, params_, axis_.get(), context_.get()));
}

Decoder::~Decoder() = default;

void Decoder::need_positions(int64_t count) const {
  // With dynamic scaling the frequencies follow the longest sequence at hand.
  const bool dynamic = rope_scaling_.kind == ops::RopeScaling::Kind::dynamic;
  const int64_t context = dynamic ? std::max(count, rope_scaling_.original_context) : 0;
  const bool fits = cos_sin_PD_.defined() && context == table_context_;
  if (fits && cos_sin_PD_.size(0) >= count) return;
  const int64_t doubled = fits ? 2 * cos_sin_PD_.size(0) : 0;
  const at::NoGradGuard no_grad;
  cos_sin_PD_ = ops::rope_table(std::max(count, doubled), config_.rotated_dim(), config_.rope_theta, device(),
                                rope_scaling_, context);
  table_context_ = context;
}

FeedForwardContext Decoder::context_of(const TokenBatch& batch, const ForwardOptions& options) const {
  FeedForwardContext context;
  context.num_tokens = batch.tokens_T.size(0);
  context.sequence_of_T = batch.sequence_of_T;
  context.num_sequences = batch.num_sequences;
  context.with_losses = options.with_losses;
  context.may_drop = options.may_drop;
  context.observer = options.observer;
  context.load_sum = options.load_sum;
  context.sequence_sum = options.sequence_sum;
  return context;
}

Decoder::Stream Decoder::run_block(int64_t layer, Stream in, const TokenBatch& batch,
                                   const ForwardOptions& options, DecoderOutput& output,
                                   ModelLoad& load) const {
  if (gate_ != nullptr) {
    const std::vector<at::Tensor> inputs = ahead_of_block(*gate_, layer, {in.x_TD, in.delta_TD});
    in = {inputs[0], inputs[1]};
    gate_->before(layer, Pass::forward);
  }
  const Block& block = *blocks_[static_cast<size_t>(layer)];
  // The stream, the balance loss and the sums of the router, of which the last three may be undefined.
  const Recompute policy = recompute_of_layer(options.recompute, options.recompute_layers, layer);
  const bool discards = policy == Recompute::selective && at::GradMode::is_enabled();
  const auto run = [&block, discards, cos_sin = cos_sin_PD_, batch, context = context_of(batch, options)](
                       const Stream& stream, const auto& look) {
    // A norm's output goes, and comes again from its input, which the norm keeps.
    const auto discard_normed = [&](Discards& all, const at::Tensor& normed_TD, const at::Tensor& x_TD,
                                    const Param& weight) {
      all.add(normed_TD, [x = x_TD.detach(), &weight, &block] {
        return add_norm(x, {}, weight, block.axis, block.eps).second;
      });
    };
    const auto [x_TD, attention_in_TD] =
        add_norm(stream.x_TD, stream.delta_TD, block.attention_norm, block.axis, block.eps);
    Discards of_attention, of_ffn;
    if (discards) discard_normed(of_attention, attention_in_TD, x_TD, block.attention_norm);
    at::Tensor attention_TD = block.attention->forward(attention_in_TD, batch.positions_T, cos_sin,
                                                       batch.documents, discards ? &of_attention : nullptr);
    if (discards) attention_TD = of_attention.finish(attention_TD);
    look("attention", attention_TD);
    const auto [sum_TD, ffn_in_TD] = add_norm(x_TD, attention_TD, block.ffn_norm, block.axis, block.eps);
    FeedForwardContext own = context;
    if (recomputing()) own.observer = nullptr;
    if (discards) {
      discard_normed(of_ffn, ffn_in_TD, sum_TD, block.ffn_norm);
      own.discards = &of_ffn;
    }
    FeedForwardResult ffn = block.feed_forward->forward(ffn_in_TD, own);
    if (discards) ffn.y_TD = of_ffn.finish(ffn.y_TD);
    look("feed_forward", ffn.y_TD);
    return std::vector<at::Tensor>{sum_TD, ffn.y_TD, ffn.balance_loss, ffn.prob_sum_SE, ffn.counts_SE};
  };
  std::vector<at::Tensor> out;
  if (policy == Recompute::full) {
    std::vector<at::Tensor> inputs{in.x_TD};
    if (in.delta_TD.defined()) inputs.push_back(in.delta_TD);
    // A recomputed segment returns defined tensors only; which ones they are is the same in both runs.
    const auto defined = std::make_shared<std::vector<bool>>();
    const std::vector<at::Tensor> results =
        recompute(inputs, [run, defined](const std::vector<at::Tensor>& own) {
          std::vector<at::Tensor> all = run(Stream{own[0], own.size() > 1 ? own[1] : at::Tensor()},
                                            [](const char*, const at::Tensor&) {});
          defined->clear();
          for (const at::Tensor& each : all) defined->push_back(each.defined());
          std::erase_if(all, [](const at::Tensor& each) { return !each.defined(); });
          return all;
        });
    auto next = results.begin();
    for (const bool is_defined : *defined) out.push_back(is_defined ? *next++ : at::Tensor());
  } else {
    out = run(in, [&](const char* part, const at::Tensor& value) {
      if (options.probe && value.defined()) options.probe(concat("layers.", layer, ".", part), value);
    });
  }
  if (gate_ != nullptr) {
    gate_->after(layer, Pass::forward);
    out = behind_block(*gate_, layer, std::move(out));
  }
  add_loss(output.balance_loss, out[2]);
  if (out[3].defined()) {
    const std::string& scope = config_.moe.balance.aux_scope;
    load.load_sum = scope == "sequence" ? options.sequence_sum : options.load_sum;
    if (scope == "model") {
      add_loss(load.prob_sum_RE, out[3]);
      add_loss(load.counts_RE, out[4].detach());
      load.num_tokens += batch.tokens_T.size(0);
    } else {
      add_rows(load.prob_sum_RE, out[3]);
      add_rows(load.counts_RE, out[4].detach());
      load.num_tokens = batch.tokens_T.size(0);
      load.num_segments = out[3].size(0);
    }
  }
  return {out[0], out[1]};
}

// E * sum_e f_e P_e with f_e the share of the slots and P_e the mean probability over the tokens of all
// layers. (Transformers' load_balancing_loss_func, whose f_e add up to the experts per token.)
at::Tensor Decoder::model_balance_loss(const ModelLoad& load) const {
  const config::MoeConfig& moe = config_.moe;
  const double tokens = static_cast<double>(std::max<int64_t>(load.num_tokens, 1));
  const double slots = tokens * static_cast<double>(moe.top_k);
  if (moe.balance.aux_scope != "model") {
    MOEBIUS_CHECK(load.load_sum != nullptr, "loads of layers that no other process shares");
    // The loss of each layer, the mean over its segments, with f_e of all ranks and P_e of this one: the mean
    // over the ranks is that of all their tokens. Segments have one size, on every rank. One exchange for all
    // layers, behind the last, where nothing waits for it.
    const auto segments = static_cast<double>(load.num_segments);
    const double share = moe.balance.aux_loss * static_cast<double>(moe.experts * moe.top_k) * segments /
                         (slots * slots * load.load_sum->num_ranks());
    return (load.load_sum->sum(load.counts_RE) * load.prob_sum_RE).sum() * share;
  }
  const double factor = moe.balance.aux_loss * static_cast<double>(moe.experts) / (tokens * slots);
  if (load.load_sum == nullptr) return (load.counts_RE * load.prob_sum_RE).sum() * factor;
  // The mean over the ranks of what each returns is the loss of all their tokens.
  const at::Tensor counts_RE = load.load_sum->sum(load.counts_RE);
  return (counts_RE * load.prob_sum_RE).sum() * (factor / load.load_sum->num_ranks());
}

void Decoder::predict_further(const at::Tensor& hidden_TD, const TokenBatch& batch,
                              const ForwardOptions& options, DecoderOutput& output, ModelLoad& load) const {
  const MultiToken::Shifted next =
      batch.next_tokens_T.defined() ? MultiToken::Shifted{batch.next_tokens_T, batch.next_targets_T}
                                    : MultiToken::shift(batch.tokens_T, batch.targets_T, batch.positions_T);
  const Stream in{mtp_->combine(hidden_TD, embed(next.tokens_T)), {}};
  const Stream out = run_block(config_.layers, in, batch, options, output, load);
  const at::Tensor mtp_TD =
      add_norm(out.x_TD, out.delta_TD, mtp_->final_norm(), axis_.get(), config_.norm_eps).second;
  output.mtp_hidden_TD = enter(axis_.get(), mtp_TD, batch.tokens_T.size(0));
  output.mtp_targets_T = next.targets_T;
}

// Rows of another rank give zeros here, and the sum over the ranks has every token's row once.
at::Tensor Decoder::embed(const at::Tensor& tokens_T) const {
  if (axis_ == nullptr) return at::embedding(embedding_->value, tokens_T);
  const Range rows = share_of(config_.vocab, axis_->place());
  const at::Tensor row_T = tokens_T - rows.begin;
  const at::Tensor elsewhere_T = row_T.lt(0).logical_or(row_T.ge(rows.count));
  const at::Tensor here_TD = at::embedding(embedding_->value, row_T.masked_fill(elsewhere_T, 0));
  return axis_->leave_lookup(here_TD.masked_fill(elsewhere_T.unsqueeze(1), 0));
}

LayerRange Decoder::layers_of(int chunk) const {
  return pieces_ ? pieces_->layers[static_cast<size_t>(pieces_->piece_of(chunk))]
                 : LayerRange{0, config_.layers};
}

std::vector<int64_t> Decoder::stream_sizes(int64_t num_tokens) const {
  MOEBIUS_CHECK(!in_blocks(axis_.get()), "stages of a pipeline on a grid of tensor ranks");
  return {axis_ ? axis_->rows_between(num_tokens) : num_tokens, config_.dim};
}

at::TensorOptions Decoder::stream_options() const {
  // Norms have the precision of the model.
  for (const Param& param : params_.params())
    if (!param.spec.is_fp32) return param.value.options().requires_grad(false);
  return params_.params().front().value.options().requires_grad(false);
}

Decoder::Stream Decoder::receive_stream(int chunk, const at::Tensor& tokens_T) const {
  if (is_first(chunk)) return {embed(tokens_T), {}};
  const at::Tensor x_TD = at::empty(stream_sizes(tokens_T.size(0)), stream_options());
  pieces_->link->receive(pieces_->piece_of(chunk), x_TD);
  return {x_TD, {}};
}

DecoderOutput Decoder::forward(const TokenBatch& batch, const ForwardOptions& options) const {
  if (!pieces_) return run_piece(0, batch, {}, options);
  MOEBIUS_CHECK(!at::GradMode::is_enabled(), "the layers of other stages are out of autograd's reach");
  DecoderOutput output;
  for (int chunk = 0; chunk < num_chunks(); ++chunk) {
    const at::Tensor x_TD = is_first(chunk) ? at::Tensor() : receive_stream(chunk, batch.tokens_T).x_TD;
    output = run_piece(chunk, batch, x_TD, options);
    if (!is_last(chunk)) pieces_->link->send(pieces_->piece_of(chunk) + 1, output.stream_TD);
  }
  return output;
}

DecoderOutput Decoder::run_piece(int chunk, const TokenBatch& batch, const at::Tensor& x_TD,
                                 const ForwardOptions& options) const {
  MOEBIUS_CHECK(axis_ == nullptr || (params_.shards().tp.size == axis_->place().size &&
                                     params_.shards().tp.rank == axis_->place().rank),
                "parameters are split for rank ", params_.shards().tp.rank, " of ", params_.shards().tp.size);
  need_positions(batch.max_position);
  const auto probe = [&](const std::string& name, const at::Tensor& value) {
    if (options.probe && value.defined()) options.probe(name, value);
  };
  DecoderOutput output;
  ModelLoad load;
  Stream stream{x_TD, {}};
  if (is_first(chunk)) {
    stream.x_TD = embed(batch.tokens_T);
    probe("embedding", stream.x_TD);
  }
  const LayerRange layers = layers_of(chunk);
  for (int64_t layer = layers.begin; layer < layers.end; ++layer)
    stream = run_block(layer, stream, batch, options, output, load);
  if (is_last(chunk)) {
    const auto [sum_TD, hidden_TD] =
        add_norm(stream.x_TD, stream.delta_TD, *final_norm_, axis_.get(), config_.norm_eps);
    output.hidden_TD = enter(axis_.get(), hidden_TD, batch.tokens_T.size(0));
    probe("final_norm", output.hidden_TD);
    if (mtp_ && options.with_mtp) predict_further(hidden_TD, batch, options, output, load);
  } else {
    output.stream_TD = stream.x_TD + stream.delta_TD;
  }
  if (load.prob_sum_RE.defined()) add_loss(output.balance_loss, model_balance_loss(load));
  return output;
}

at::Tensor Decoder::loss(const at::Tensor& hidden_TD, const at::Tensor& targets_T, double scale,
                         at::Tensor* token_loss_T) const {
  if (axis_ == nullptr)
    return ops::linear_cross_entropy(hidden_TD, output_weight(), targets_T, scale, token_loss_T);
  ops::VocabularySplit split;
  split.begin = share_of(config_.vocab, axis_->place()).begin;
  split.vocab = config_.vocab;
  split.num_ranks = axis_->place().size;
  split.gather = [this](const at::Tensor& values) { return axis_->gather(values); };
  const at::Tensor sum =
      ops::linear_cross_entropy(hidden_TD, axis_->whole_width(output_weight()),
                                rows_of_line(axis_.get(), targets_T), scale, token_loss_T, &split);
  if (token_loss_T != nullptr) *token_loss_T = axis_->rows_of_lines(*token_loss_T, targets_T.size(0));
  return axis_->sum_of_lines(sum);
}

at::Tensor Decoder::logits(const at::Tensor& hidden_TD) const {
  const at::Tensor weight_VD = axis_ == nullptr ? output_weight() : axis_->whole_width(output_weight());
  const at::Tensor logits_TV = ops::linear(hidden_TD, weight_VD).to(at::kFloat);
  if (axis_ == nullptr) return logits_TV;
  // Rows of ranks may differ by one: all are padded to the most.
  const AxisPlace place = axis_->place();
  const int64_t most = (config_.vocab + place.size - 1) / place.size;
  const at::Tensor padded_TV =
      at::constant_pad_nd(logits_TV, at::IntArrayRef{0, most - logits_TV.size(1)}).contiguous();
  const at::Tensor all_RTV = axis_->gather(padded_TV);
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < place.size; ++rank)
    parts.push_back(all_RTV[rank].narrow(1, 0, share_of(config_.vocab, {place.size, rank}).count));
  return at::cat(parts, 1);
}

void Decoder::pass_cached(const at::Tensor& tokens_T, KvCache& cache,
                          const std::function<void(const Stream&)>& at_end) const {
  const int64_t count = tokens_T.size(0), before = cache.length();
  need_positions(before + count);
  const at::Tensor positions_T =
      at::arange(before, before + count, at::TensorOptions().dtype(at::kInt).device(device()));
  FeedForwardContext context;
  context.num_tokens = count;
  context.may_drop = false;
  for (int chunk = 0; chunk < num_chunks(); ++chunk) {
    Stream stream = receive_stream(chunk, tokens_T);
    const LayerRange layers = layers_of(chunk);
    for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
      const Block& block = *blocks_[static_cast<size_t>(layer)];
      if (gate_ != nullptr) gate_->before(layer, Pass::forward);
      const auto [x_TD, attention_in_TD] =
          add_norm(stream.x_TD, stream.delta_TD, block.attention_norm, block.axis, block.eps);
      const at::Tensor attention_TD =
          block.attention->forward_cached(attention_in_TD, positions_T, cos_sin_PD_, layer, cache);
      const auto [sum_TD, ffn_in_TD] = add_norm(x_TD, attention_TD, block.ffn_norm, block.axis, block.eps);
      stream = {sum_TD, block.feed_forward->forward(ffn_in_TD, context).y_TD};
      if (gate_ != nullptr) gate_->after(layer, Pass::forward);
    }
    if (is_last(chunk)) {
      at_end(stream);
    } else {
      pieces_->link->send(pieces_->piece_of(chunk) + 1, stream.x_TD + stream.delta_TD);
    }
  }
  cache.advance(count);
}

at::Tensor Decoder::normed(const Stream& stream) const {
  return add_norm(stream.x_TD, stream.delta_TD, *final_norm_, axis_.get(), config_.norm_eps).second;
}

at::Tensor Decoder::next_logits(const at::Tensor& tokens_T, KvCache& cache) const {
  const at::NoGradGuard no_grad;
  at::Tensor logits_V;
  pass_cached(tokens_T, cache,
              [&](const Stream& stream) { logits_V = last_logits(stream, tokens_T.size(0)); });
  if (pieces_) {
    if (!logits_V.defined()) logits_V = at::empty({config_.vocab}, stream_options().dtype(at::kFloat));
    pieces_->link->share_last(logits_V);
  }
  return logits_V;
}

at::Tensor Decoder::next_hidden(const at::Tensor& tokens_T, KvCache& cache) const {
  MOEBIUS_CHECK(!pieces_, "hidden states of a decoder in pieces");
  const at::NoGradGuard no_grad;
  at::Tensor hidden_TD;
  pass_cached(tokens_T, cache, [&](const Stream& stream) { hidden_TD = normed(stream); });
  return of_all_tokens(enter(axis_.get(), hidden_TD, tokens_T.size(0)), tokens_T.size(0));
}

at::Tensor Decoder::last_logits(const Stream& stream, int64_t count) const {
  if (axis_ != nullptr)  // the last token may be another rank's
    return logits(of_all_tokens(axis_->enter(normed(stream), count), count).narrow(0, count - 1, 1))
        .squeeze(0)
        .contiguous();
  return logits(normed({stream.x_TD.narrow(0, count - 1, 1), stream.delta_TD.narrow(0, count - 1, 1)}))
      .squeeze(0);
}

KvCache Decoder::make_cache(int64_t capacity, KvFormat format) const {
  return make_kv_cache(config_, capacity, stream_options(), axis_.get(), format);
}

}  // namespace moebius::nn
