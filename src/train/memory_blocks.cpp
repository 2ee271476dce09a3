// Blocks of the decoder and their attention, see memory_replay.h.
#include <utility>

#include "base/concat.h"
#include "train/memory_replay.h"

namespace moebius::train::memory {
namespace {

// What ops::attention_in_blocks lets the scores of a block take.
constexpr int64_t kScoreBlockBytes = int64_t{128} << 20;

}  // namespace

// One block of nn::Decoder. Without nodes: no autograd.
Stream Replay::block(int64_t layer, const Stream& in, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const bool first = in.delta == nullptr;
  const Tensor x = first ? in.x : make(keep, model_elements());
  const bool discards = nodes != nullptr && policy(layer) == nn::Recompute::selective;
  const Tensor attention_in = make(keep, model_elements());
  if (discards) nodes->attention_discards = {attention_in};
  {
    const Tensor inv_rms = make32(keep, num_tokens_);
    if (nodes != nullptr) nodes->attention_norm = {x, inv_rms};
  }
  Tensor y;
  {
    const Tensor qkv =
        model_.is_latent() ? latent_projection(attention_in, nodes) : fused_projection(attention_in, nodes);
    if (discards && !model_.is_latent() && model_.qk_norm != "none") nodes->attention_discards.push_back(qkv);
    const Tensor mixed = attention(qkv, nodes);
    if (nodes != nullptr) nodes->out = {mixed};
    second_product(out_width_ * stream_dim_);
    const Tensor product = model_.attention_output_bias ? make(kWorkspace, model_elements()) : nullptr;
    y = make(kWorkspace, model_elements());
    if (discards) discard(nodes->attention_discards);
  }
  Stream out;
  out.x = make(kActivations, model_elements());
  const Tensor ffn_in = make(keep, model_elements());
  {
    const Tensor inv_rms = make32(keep, num_tokens_);
    if (nodes != nullptr) nodes->ffn_norm = {out.x, inv_rms};
  }
  if (discards) nodes->ffn_discards = {ffn_in};
  out.delta = feed_forward(layer, ffn_in, nodes);
  if (discards) discard(nodes->ffn_discards);
  return out;
}

// The gradients of the stream that leaves the block become those of the stream that enters it.
Stream Replay::block_backward(int64_t layer, BlockNodes& nodes, Stream grad) {
  const std::string prefix = concat("layers.", layer, ".");
  Tensor grad_sum;
  remake(nodes.ffn_discards);
  {
    const Tensor grad_ffn_in = feed_forward_backward(layer, nodes);
    grad_sum = make(kWorkspace, model_elements());
    accumulate_new(prefix + "ffn_norm");
  }
  grad = {};
  nodes.ffn_norm.clear();

  remake(nodes.attention_discards);
  second_product_backward(out_width_ * stream_dim_, out_width_);
  Tensor flowing = make(kWorkspace, num_tokens_ * out_width_);
  accumulate_new(prefix + "attention.out");
  nodes.out.clear();
  {
    const Tensor grad_mixed = std::exchange(flowing, {});
    flowing = attention_backward();
  }
  nodes.attention.clear();
  flowing = model_.is_latent() ? latent_projection_backward(prefix, nodes, std::exchange(flowing, {}))
                               : fused_projection_backward(prefix, nodes, std::exchange(flowing, {}));
  nodes.qkv.clear();
  accumulate_rest(prefix + "attention.");

  Stream result;
  result.x = result.delta = make(kWorkspace, model_elements());
  accumulate_new(prefix + "attention_norm");
  nodes.attention_norm.clear();
  return result;
}

// nn::recompute of a block: its outputs and their gradients live until the inner backward pass has ended,
// which leaves the gradients of its inputs in two tensors.
Stream Replay::recomputed_block_backward(int64_t layer, BlockNodes& nodes, const Stream& grad) {
  const Stream in{nodes.recompute[0], nodes.recompute[1]};
  BlockNodes inner;
  const Stream out = block(layer, in, &inner);
  Stream result = block_backward(layer, inner, grad);
  if (in.delta) result.x = make(kWorkspace, model_elements());
  nodes.recompute.clear();
  return result;
}

// The fused projection, its norms and its rotation. Returns what attention reads.
Tensor Replay::fused_projection(const Tensor& x, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const int64_t elements = num_tokens_ * (query_width_ + key_width_ + value_width_);
  const bool normed = model_.qk_norm != "none";
  first_product((query_width_ + key_width_ + value_width_) * stream_dim_,
                query_width_ + key_width_ + value_width_);
  Tensor product = model_.attention_bias ? make(kWorkspace, elements) : nullptr;
  const Tensor projected = make(normed ? keep : kWorkspace, elements);
  product.reset();
  // In part rotated heads go through libtorch's operators on the GPU, in fp32.
  const bool composite = on_cuda_ && model_.rotary_dim > 0 && model_.rotary_dim < model_.query_dim();
  const Tensor parts = composite ? make32(kWorkspace, 2 * elements) : nullptr;
  // Tokens are exchanged for heads.
  const Tensor exchanged = side_ > 1 ? make(kWorkspace, 2 * elements) : nullptr;
  Tensor qkv = make(keep, elements);
  if (nodes == nullptr) return qkv;
  nodes->qkv = {x};
  if (normed)
    nodes->rope = {
        projected,
        make32(keep, num_tokens_ * (model_.qk_norm == "head" ? model_.heads + model_.kv_heads : 2))};
  return qkv;
}

Tensor Replay::fused_projection_backward(const std::string& prefix, BlockNodes& nodes, Tensor grad_rotated) {
  Tensor grad_qkv = make(kWorkspace, num_tokens_ * (query_width_ + key_width_ + value_width_));
  grad_rotated.reset();
  if (model_.qk_norm != "none")
    for (const char* name : {"attention.q_norm", "attention.k_norm"}) accumulate_new(prefix + name);
  nodes.rope.clear();
  first_product_backward((query_width_ + key_width_ + value_width_) * stream_dim_);
  Tensor grad_x = make(kWorkspace, model_elements());
  accumulate_new(prefix + "attention.qkv");
  return grad_x;
}

// nn::LatentAttention up to the queries, keys and values of all heads.
Tensor Replay::latent_projection(const Tensor& x, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const config::MlaConfig& mla = model_.mla;
  Kept latents;
  // A latent and its norm.
  const auto latent = [&](int64_t rank) {
    for (int i = 0; i < 2; ++i) latents.push_back(make(keep, num_tokens_ * rank));
    latents.push_back(make32(keep, num_tokens_));
  };
  // Cosines and sines of the tokens, and the rotated heads.
  const auto rotated = [&](int64_t heads) {
    latents.push_back(make32(keep, num_tokens_ * mla.rope_dim));
    return make(kWorkspace, num_tokens_ * heads * mla.rope_dim);
  };
  if (mla.q_rank > 0) latent(mla.q_rank);
  const Tensor q = make(kWorkspace, num_tokens_ * query_width_);
  const Tensor q_rotated = rotated(model_.heads);
  const Tensor down = make(kWorkspace, num_tokens_ * (mla.kv_rank + mla.rope_dim));
  latent(mla.kv_rank);
  const Tensor key_rotated = rotated(1);
  const Tensor expanded = make(kWorkspace, num_tokens_ * model_.heads * (mla.nope_dim + mla.value_dim));
  const Kept parts{make(kWorkspace, num_tokens_ * query_width_), make(kWorkspace, num_tokens_ * key_width_),
                   make(kWorkspace, num_tokens_ * value_width_)};
  Tensor qkv = make(keep, num_tokens_ * (query_width_ + key_width_ + value_width_));
  if (nodes != nullptr) {
    nodes->qkv = {x};
    nodes->latents = latents;
  }
  return qkv;
}

Tensor Replay::latent_projection_backward(const std::string& prefix, BlockNodes& nodes, Tensor grad_qkv) {
  const config::MlaConfig& mla = model_.mla;
  Tensor grad_x;
  {
    // Each view of the expanded keys and values gives a gradient of the whole.
    Kept parts{make(kWorkspace, num_tokens_ * (key_width_ + value_width_)),
               make(kWorkspace, num_tokens_ * (key_width_ + value_width_))};
    const Tensor latent = make(kWorkspace, num_tokens_ * mla.kv_rank);
    accumulate_new(prefix + "attention.kv_up");
    parts.clear();
    const Tensor down = make(kWorkspace, num_tokens_ * (mla.kv_rank + mla.rope_dim));
    grad_x = make(kWorkspace, model_elements());
    accumulate_new(prefix + "attention.kv_down");
  }
  {
    const Kept parts{make(kWorkspace, num_tokens_ * query_width_),
                     make(kWorkspace, num_tokens_ * query_width_)};
    grad_qkv.reset();
    if (mla.q_rank > 0) {
      const Tensor latent = make(kWorkspace, num_tokens_ * mla.q_rank);
      accumulate_new(prefix + "attention.q_up");
    }
    const Tensor second = make(kWorkspace, model_elements());
    accumulate_new(prefix + (mla.q_rank > 0 ? "attention.q_down" : "attention.q"));
  }
  nodes.latents.clear();
  return grad_x;
}

void Replay::first_product(int64_t weight, int64_t wide) {
  if (side_ == 1) return;
  const Kept passing{make(kWorkspace, 2 * model_elements()), make(kWorkspace, 2 * weight)};
  const Tensor sums = make32(kWorkspace, 2 * num_tokens_ * wide);
}

void Replay::first_product_backward(int64_t weight) {
  if (side_ == 1) return;
  { const Tensor passing = make(kWorkspace, 2 * weight), parts = make32(kWorkspace, region_elements()); }
  const Tensor passing = make(kWorkspace, 2 * model_elements()), parts = make32(kWorkspace, side_ * weight);
}

void Replay::second_product(int64_t weight) {
  if (side_ == 1) return;
  const Tensor passing = make(kWorkspace, 2 * weight), parts = make32(kWorkspace, region_elements());
}

void Replay::second_product_backward(int64_t weight, int64_t wide) {
  if (side_ == 1) return;
  const Tensor passing = make(kWorkspace, 2 * model_elements());
  { const Tensor weights = make(kWorkspace, 2 * weight), sums = make32(kWorkspace, 2 * num_tokens_ * wide); }
  const Tensor parts = make32(kWorkspace, side_ * weight);
}

Tensor Replay::attention(const Tensor& qkv, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  Kept ring;  // ops::AttentionSums, keys and values at hand and on their way
  if (context_ranks_ > 1) {
    ring = {make32(kWorkspace, num_tokens_ * out_width_), make(kWorkspace, num_tokens_ * part_width()),
            make(kWorkspace, num_tokens_ * part_width())};
    add_score_blocks(ring);
  }
  const Tensor out = make(keep, num_tokens_ * out_width_),
               log_sums = make32(keep, num_tokens_ * model_.heads);
  if (nodes != nullptr) nodes->attention = {qkv, out, log_sums};
  return out;
}

// Where no fused kernel of a GPU serves, scores and their gradients exist in blocks (ops/attention_part.h).
void Replay::add_score_blocks(Kept& ring) {
  const bool flash = element_ == 2 && !has_windows() && model_.query_dim() == model_.value_dim();
  if (on_cuda_ && !flash) ring.push_back(bytes(kWorkspace, 3 * kScoreBlockBytes));
}

// Gradients of queries; of keys and values this rank's own, those being made and two on their way; keys and
// values themselves (parallel/ring_attention.h).
Tensor Replay::ring_backward() {
  const int64_t part = num_tokens_ * part_width();
  Kept ring{make32(kWorkspace, num_tokens_ * query_width_), make(kWorkspace, part), make(kWorkspace, part)};
  for (int i = 0; i < 4; ++i) ring.push_back(make32(kWorkspace, part));
  add_score_blocks(ring);
  return make(kWorkspace, num_tokens_ * (query_width_ + key_width_ + value_width_));
}

Tensor Replay::attention_backward() {
  if (context_ranks_ > 1) return ring_backward();
  const int64_t elements = num_tokens_ * (query_width_ + key_width_ + value_width_);
  if (!on_cuda_) return make(kWorkspace, elements);
  if (model_.attention_sinks || has_windows()) {
    // ops::attention_in_blocks: the scores of a block and their gradients, sums of keys and values.
    const Tensor grad_qkv = make(kWorkspace, elements);
    const Tensor sums = make32(kWorkspace, num_tokens_ * (key_width_ + value_width_));
    const Tensor scores = bytes(kWorkspace, 3 * kScoreBlockBytes);
    return grad_qkv;
  }
  Kept grads{make(kWorkspace, num_tokens_ * query_width_), make(kWorkspace, num_tokens_ * key_width_),
             make(kWorkspace, num_tokens_ * value_width_)};
  // cuDNN sums the queries' gradients in fp32.
  { const Tensor sums = make32(kWorkspace, num_tokens_ * query_width_); }
  return make(kWorkspace, elements);
}

}  // namespace moebius::train::memory
