// Feed-forward layers, dense and routed, see memory_replay.h.
#include <algorithm>
#include <utility>

#include "base/concat.h"
#include "moe/moe_feed_forward.h"
#include "train/memory_replay.h"

namespace moebius::train::memory {

bool Replay::is_moe(int64_t layer) const {
  return moe::is_moe_layer(model_, layer);
}

Tensor Replay::feed_forward(int64_t layer, const Tensor& x, BlockNodes* nodes) {
  const bool discards = nodes != nullptr && policy(layer) == nn::Recompute::selective;
  const auto dense_of = [&](int64_t width) {
    return dense(width, x, nodes != nullptr ? &nodes->dense : nullptr,
                 discards ? &nodes->ffn_discards : nullptr);
  };
  if (!is_moe(layer)) return dense_of(model_.ffn_dim);

  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const int64_t num_logits = num_tokens_ * model_.moe.experts, num_slots = num_rows();
  // On a grid tokens are gathered in their whole width, and travel to the rows that have their experts.
  const Tensor in = side_ > 1 ? make(keep, region_elements()) : x;
  if (side_ > 1 && discards) nodes->ffn_discards.push_back(in);
  Tensor logits;
  {
    const Tensor x_fp32 = element_ == 4 ? in : make32(on_cuda_ ? kWorkspace : keep, region_elements());
    logits = make32(keep, num_logits);
    if (nodes != nullptr) nodes->router = {on_cuda_ ? in : x_fp32};
  }
  const int64_t trips = std::min(side_, model_.moe.top_k) * region_elements();
  const Tensor arrived = side_ > 1 ? make(keep, trips) : x;
  // Probabilities, and per token the logsumexp.
  Kept route{logits, make32(keep, num_logits), make32(keep, num_tokens_)};
  logits.reset();
  // Chosen experts and their weights, rows by expert and back.
  const Kept routing{make32(keep, num_slots), make32(keep, num_slots), make32(keep, num_slots),
                     make32(keep, num_slots)};
  route.insert(route.end(), routing.begin(), routing.begin() + 2);
  if (nodes != nullptr) nodes->route = route;
  route.clear();
  Tensor y = plain_experts() ? experts(arrived, routing, nodes, !discards)
                             : biased_experts(arrived, routing, nodes, !discards);
  if (side_ > 1) {
    const Tensor back = make(kWorkspace, trips);
    y = make(kWorkspace, model_elements());
  }
  if (model_.moe.shared_experts > 0) {
    Tensor shared = dense_of(model_.moe.shared_width());
    if (model_.moe.shared_gate) {
      // The product with the gate keeps both.
      const Tensor plain = std::exchange(shared, make(kWorkspace, model_elements()));
      if (nodes != nullptr) nodes->shared_gate = {plain, make(keep, num_tokens_)};
    }
    y = make(kWorkspace, model_elements());
  }
  return y;
}

Tensor Replay::feed_forward_backward(int64_t layer, BlockNodes& nodes) {
  const std::string prefix = concat("layers.", layer, ".");
  if (!is_moe(layer)) {
    Tensor grad_x = dense_backward(prefix + "ffn.", model_.ffn_dim, nodes.dense);
    accumulate_rest(prefix + "ffn.");
    return grad_x;
  }
  Tensor grad_x;
  if (model_.moe.shared_experts > 0) {
    const Tensor grad_shared = model_.moe.shared_gate ? make(kWorkspace, 2 * model_elements()) : nullptr;
    nodes.shared_gate.clear();
    grad_x = dense_backward(prefix + "moe.shared.", model_.moe.shared_width(), nodes.dense);
  }
  {
    // Later contributions are added to the first in place.
    Tensor grad_experts = plain_experts() ? experts_backward(prefix + "moe.", nodes)
                                          : biased_experts_backward(prefix + "moe.", nodes);
    if (!grad_x) grad_x = std::move(grad_experts);
  }
  router_backward(prefix + "moe.", nodes);
  if (side_ > 1) grad_x = make(kWorkspace, model_elements());
  accumulate_rest(prefix + "moe.");
  return grad_x;
}

Tensor Replay::dense(int64_t width, const Tensor& x, DenseNodes* nodes, Kept* discards) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  first_product(2 * width * stream_dim_, 2 * width);
  Tensor product = model_.ffn_bias ? make(kWorkspace, num_tokens_ * 2 * width) : nullptr;
  const Tensor up = make(keep, num_tokens_ * 2 * width);
  product.reset();
  const Tensor activation = make(keep, num_tokens_ * width);
  if (nodes != nullptr) {
    nodes->up = {x};
    nodes->swiglu = {up};
    nodes->down = {activation};
  }
  if (discards != nullptr) discards->insert(discards->end(), {up, activation});
  second_product(width * stream_dim_);
  return make(kWorkspace, model_elements());
}

Tensor Replay::dense_backward(const std::string& prefix, int64_t width, DenseNodes& nodes) {
  second_product_backward(width * stream_dim_, width);
  Tensor flowing = make(kWorkspace, num_tokens_ * width);
  accumulate(prefix + "down", weight_grad(prefix + "down"));
  nodes.down.clear();
  {
    const Tensor grad_activation = std::exchange(flowing, {});
    flowing = make(kWorkspace, num_tokens_ * 2 * width);
  }
  nodes.swiglu.clear();
  const Tensor grad_up = std::exchange(flowing, {});
  first_product_backward(2 * width * stream_dim_);
  Tensor grad_x = make(kWorkspace, model_elements());
  accumulate(prefix + "gate_up", weight_grad(prefix + "gate_up"));
  nodes.up.clear();
  return grad_x;
}

// ops::expert_ffn. Rows are gathered on CUDA; the CPU's kernel reads them in place.
Tensor Replay::experts(const Tensor& x, const Kept& routing, BlockNodes* nodes, bool keeps_up) {
  const bool keep = nodes != nullptr && keeps_up;
  const int64_t width = model_.moe.expert_dim;
  Tensor gate_up;
  {
    const Tensor gathered = on_cuda_ ? make(kWorkspace, num_rows() * dim_) : nullptr;
    gate_up = make(keep ? kActivations : kWorkspace, num_rows() * 2 * width);
  }
  Tensor activation = make(kWorkspace, num_rows() * width);
  if (!keep) gate_up.reset();
  const Tensor rows = make(kWorkspace, num_rows() * dim_);
  activation.reset();
  if (nodes != nullptr) {
    nodes->experts = routing;
    nodes->experts.push_back(x);
    nodes->gate_up = gate_up;
  }
  return make(kWorkspace, region_elements());
}

Tensor Replay::experts_backward(const std::string& prefix, BlockNodes& nodes) {
  const int64_t width = model_.moe.expert_dim;
  const auto gathered = [&] { return on_cuda_ ? make(kWorkspace, num_rows() * dim_) : nullptr; };
  Tensor gate_up = std::exchange(nodes.gate_up, {});
  if (!gate_up) {
    const Tensor x_rows = gathered();
    gate_up = make(kWorkspace, num_rows() * 2 * width);
  }
  Tensor grad_rows = gathered();
  Tensor grad_activation = make(kWorkspace, num_rows() * width);
  const Tensor row_scale = make32(kWorkspace, num_rows()), grad_weights = make32(kWorkspace, num_rows());
  const Tensor grad_down = weight_grad(prefix + "down");
  grad_rows.reset();
  grad_activation.reset();
  Tensor grad_gate_up;
  {
    const Tensor x_rows = gathered();
    grad_gate_up = weight_grad(prefix + "gate_up");
  }
  Tensor grad_x;
  {
    const Tensor grad_x_rows = make(kWorkspace, num_rows() * dim_);
    grad_x = make(kWorkspace, region_elements());
  }
  accumulate(prefix + "down", grad_down);
  accumulate(prefix + "gate_up", grad_gate_up);
  nodes.experts.clear();
  return grad_x;
}

// Matrices (R, F) of fp32 that a clamped activation makes beside its result.
void Replay::activation_parts(int64_t matrices) {
  if (model_.moe.activation == "swiglu") return;
  const Tensor parts = make32(kWorkspace, matrices * num_rows() * model_.moe.expert_dim);
}

// ops::biased_expert_ffn: the operators of ops::expert_ffn, with copies where biases are added.
Tensor Replay::biased_experts(const Tensor& x, const Kept& routing, BlockNodes* nodes, bool keeps_up) {
  const bool keep = nodes != nullptr && keeps_up, biased = model_.moe.expert_bias;
  const int64_t width = model_.moe.expert_dim;
  Tensor gate_up;
  {
    const Tensor gathered = on_cuda_ ? make(kWorkspace, num_rows() * dim_) : nullptr;
    gate_up = make(keep ? kActivations : kWorkspace, num_rows() * 2 * width);
  }
  { const Tensor biases = biased ? make(kWorkspace, num_rows() * 2 * width) : nullptr; }
  activation_parts(element_ == 2 ? 7 : 5);
  Tensor activation = make(kWorkspace, num_rows() * width);
  const Tensor rows = make(kWorkspace, num_rows() * dim_);
  activation.reset();
  { const Tensor biases = biased ? make(kWorkspace, num_rows() * dim_) : nullptr; }
  if (nodes != nullptr) {
    nodes->experts = routing;
    nodes->experts.push_back(x);
    nodes->gate_up = keep ? gate_up : nullptr;
  }
  return make(kWorkspace, region_elements());
}

Tensor Replay::biased_experts_backward(const std::string& prefix, BlockNodes& nodes) {
  const int64_t width = model_.moe.expert_dim;
  const auto gathered = [&] { return on_cuda_ ? make(kWorkspace, num_rows() * dim_) : nullptr; };
  Tensor gate_up = std::exchange(nodes.gate_up, {});
  if (!gate_up) gate_up = make(kWorkspace, num_rows() * 2 * width);
  const Tensor grad_rows = gathered();
  const Tensor grad_activation = make(kWorkspace, num_rows() * width);
  activation_parts(element_ == 2 ? 14 : 12);
  const Tensor grad_gate_up = make(kWorkspace, num_rows() * 2 * width);
  Tensor grad_x;
  {
    const Tensor grad_x_rows = make(kWorkspace, num_rows() * dim_);
    grad_x = make(kWorkspace, region_elements());
  }
  for (const char* name : {"gate_up", "down"}) {
    const Tensor x_rows = gathered();
    accumulate_new(prefix + name);
  }
  if (model_.moe.expert_bias) {
    // Rows in use, and which expert each belongs to.
    const Tensor rows = make(kWorkspace, num_rows() * 2 * width);
    const Tensor by_expert = make(kWorkspace, num_rows() * model_.moe.experts);
  }
  nodes.experts.clear();
  return grad_x;
}

void Replay::router_backward(const std::string& prefix, BlockNodes& nodes) {
  const Tensor grad_logits = make32(kWorkspace, num_tokens_ * model_.moe.experts);
  nodes.route.clear();
  Tensor grad_x;
  if (on_cuda_) {
    {
      const Tensor grad_x_fp32 = make32(kWorkspace, region_elements());
      if (element_ == 2) grad_x = make(kWorkspace, region_elements());
    }
    const Tensor x_fp32 = element_ == 2 ? make32(kWorkspace, region_elements()) : nullptr;
    accumulate(prefix + "router", weight_grad(prefix + "router"));
  } else {
    grad_x = make32(kWorkspace, region_elements());
    accumulate(prefix + "router", weight_grad(prefix + "router"));
    nodes.router.clear();
    if (element_ == 2) {
      const Tensor grad_x_fp32 = std::exchange(grad_x, {});
      grad_x = make(kWorkspace, region_elements());
    }
  }
  nodes.router.clear();
}

}  // namespace moebius::train::memory
