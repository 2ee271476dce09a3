// Shapes: T tokens of a micro-batch, R rows of the experts (T*K), D model width, C width of the fused
// projection, H query heads, Hk key heads, d head width, F hidden width, E experts, V vocabulary.
//
// A function here allocates and frees in the order of the operator or layer whose name it has. What an
// operator keeps for the backward pass goes into the Kept of its node; everything else lives as long as the
// variable that holds it.
#include "train/memory_plan.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/concat.h"
#include "data/planner/plan.h"
#include "moe/moe_feed_forward.h"
#include "ops/linear_loss.h"
#include "train/memory_tape.h"

namespace moebius::train {
namespace {

using Class = Tape::Class;
using Tensor = std::shared_ptr<const Block>;
using Kept = std::vector<Tensor>;

constexpr Class kActivations = &MemoryByClass::activations_bytes;
constexpr Class kGradients = &MemoryByClass::gradients_bytes;
constexpr Class kWorkspace = &MemoryByClass::workspace_bytes;

// libtorch's CUDA allocator hands out multiples of this.
constexpr int64_t kCudaGranularity = 512;
// libtorch's workspace for cuBLAS on sm90, one of the forward and one of the backward thread.
constexpr int64_t kCublasWorkspaceBytes = 2 * (int64_t{32} << 20);

// What the nodes of one dense feed-forward keep; with recomputation only `input`.
struct DenseNodes {
  Kept input, up, swiglu, down;
};

// What the nodes of one block keep.
struct BlockNodes {
  Kept recompute;  // of the whole block: nothing else is filled
  Kept attention_norm, qkv, rope, attention, out, ffn_norm;
  Kept router, route, experts;
  Tensor gate_up;  // of the experts; null when it is computed again
  DenseNodes dense;
};

// The residual stream and what is to be added to it, or the gradients of both.
struct Stream {
  Tensor x, delta;
};

class Replay {
 public:
  Replay(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda)
      : model_(config.model),
        recompute_(config.train.recompute),
        on_cuda_(on_cuda),
        element_(config.train.precision == "bf16" ? 2 : 4),
        num_tokens_(largest_micro_batch(config)),
        num_micro_(config.train.batch / micro_batch(config)),
        dim_(config.model.dim),
        head_dim_(config.model.head_dim > 0 ? config.model.head_dim : config.model.dim / config.model.heads),
        query_width_(config.model.heads * head_dim_),
        qkv_width_((config.model.heads + 2 * config.model.kv_heads) * head_dim_),
        tape_(on_cuda ? kCudaGranularity : 1) {
    for (const nn::Param& param : params.params())
      param_bytes_[param.spec.name] = param.spec.num_elements() * (param.spec.is_fp32 ? 4 : element_);
    allocate_state(config, params);
  }

  MemoryPlan run() {
    // From the second micro-batch on, every one finds all gradients there.
    for (int64_t micro = 0; micro < std::min<int64_t>(num_micro_, 2); ++micro) micro_batch_step();
    return tape_.plan();
  }

 private:
  static int64_t micro_batch(const config::RunConfig& config) {
    return config.train.micro_batch > 0 ? config.train.micro_batch : config.train.batch;
  }

  static int64_t largest_micro_batch(const config::RunConfig& config) {
    const data::PlanShape shape{.context = config.train.sequence, .rows = micro_batch(config)};
    return config.data.batching == "balanced" ? shape.balanced_capacity() : shape.capacity();
  }

  void allocate_state(const config::RunConfig& config, const nn::ParamTable& params);
  void micro_batch_step();

  Stream block(int64_t layer, const Stream& in, BlockNodes* nodes);
  Stream block_backward(int64_t layer, BlockNodes& nodes, Stream grad);
  Stream recomputed_block_backward(int64_t layer, BlockNodes& nodes, const Stream& grad);
  Tensor attention(const Tensor& qkv, BlockNodes* nodes);
  Tensor attention_backward();
  Tensor feed_forward(int64_t layer, const Tensor& x, BlockNodes* nodes);
  Tensor feed_forward_backward(int64_t layer, BlockNodes& nodes);
  Tensor dense(int64_t width, const Tensor& x, DenseNodes* nodes);
  Tensor dense_nodes(int64_t width, const Tensor& x, DenseNodes* nodes);
  Tensor dense_backward(const std::string& prefix, int64_t width, DenseNodes& nodes);
  Tensor experts(const Tensor& x, const Kept& routing, BlockNodes* nodes);
  Tensor experts_backward(const std::string& prefix, BlockNodes& nodes);
  void router_backward(const std::string& prefix, BlockNodes& nodes);
  struct LossGrads {
    Tensor hidden, weight;
  };
  LossGrads loss();

  // A tensor of the model's precision, of fp32 or of 32-bit integers.
  Tensor make(Class klass, int64_t elements) { return bytes(klass, elements * element_); }
  Tensor make32(Class klass, int64_t elements) { return bytes(klass, elements * 4); }
  Tensor bytes(Class klass, int64_t count) { return std::make_shared<const Block>(tape_, klass, count); }

  // The gradient that an operator's backward makes for a weight, and what becomes of it once that returns:
  // the first one stays, later ones are added to it.
  Tensor weight_grad(const std::string& name) {
    return bytes(grads_.count(name) > 0 ? kWorkspace : kGradients, param_bytes_.at(name));
  }
  void accumulate(const std::string& name, const Tensor& grad) { grads_.emplace(name, grad); }

  bool is_moe(int64_t layer) const { return moe::is_moe_layer(model_, layer); }
  int64_t num_rows() const { return num_tokens_ * model_.moe.top_k; }
  int64_t model_elements() const { return num_tokens_ * dim_; }
  int64_t shared_width() const { return model_.moe.shared_experts * model_.moe.expert_dim; }

  const config::ModelConfig& model_;
  const std::string recompute_;
  const bool on_cuda_;
  const int64_t element_;  // bytes
  const int64_t num_tokens_, num_micro_, dim_, head_dim_, query_width_, qkv_width_;
  Tape tape_;
  std::map<std::string, int64_t> param_bytes_;
  Kept state_;  // lives as long as the run
  std::map<std::string, Tensor> grads_;
};

void Replay::allocate_state(const config::RunConfig& config, const nn::ParamTable& params) {
  tape_.begin("between steps");
  const int64_t moment = config.optimizer.state_dtype == "bf16" ? 2 : 4;
  for (const nn::Param& param : params.params()) {
    const int64_t count = param.spec.num_elements();
    state_.push_back(bytes(&MemoryByClass::weights_bytes, param_bytes_.at(param.spec.name)));
    if (param.spec.is_buffer) continue;
    for (int i = 0; i < 2; ++i)
      state_.push_back(bytes(&MemoryByClass::moments_bytes, count * (param.spec.is_fp32 ? 4 : moment)));
    if (element_ == 2 && !param.spec.is_fp32 && config.optimizer.master_weights)
      state_.push_back(bytes(&MemoryByClass::master_bytes, count * 4));
  }
  state_.push_back(bytes(&MemoryByClass::input_bytes, config.train.sequence * head_dim_ * 4));
  if (on_cuda_) state_.push_back(bytes(kWorkspace, kCublasWorkspaceBytes));
}

void Replay::micro_batch_step() {
  // Tokens and targets of 8 bytes, positions and sequence numbers of 4.
  const Tensor input = bytes(&MemoryByClass::input_bytes, num_tokens_ * 24);
  std::vector<BlockNodes> nodes(static_cast<size_t>(model_.layers));
  Kept final_norm;
  Tensor hidden;
  {
    tape_.begin("forward of the embedding");
    Stream stream{make(kActivations, model_elements()), {}};
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      tape_.begin(concat("forward of layer ", layer));
      BlockNodes& own = nodes[static_cast<size_t>(layer)];
      if (recompute_ == "full") {
        own.recompute = {stream.x, stream.delta};
        stream = block(layer, stream, nullptr);
      } else {
        stream = block(layer, stream, &own);
      }
    }
    final_norm = {make(kActivations, model_elements()), make32(kActivations, num_tokens_)};
    hidden = make(kActivations, model_elements());
  }
  tape_.begin("loss");
  LossGrads grads = loss();
  // The loss's backward hands out what its forward has made; the output layer's gradient waits for the
  // embedding's when they are one parameter.
  Tensor tied_grad;
  if (model_.tied_embeddings) {
    tied_grad = grads.weight;
  } else {
    accumulate("output", grads.weight);
  }
  grads.weight.reset();
  Stream grad;
  grad.x = grad.delta = make(kWorkspace, model_elements());
  accumulate("final_norm", weight_grad("final_norm"));
  grads = {};
  final_norm.clear();
  for (int64_t layer = model_.layers - 1; layer >= 0; --layer) {
    tape_.begin(concat("backward of layer ", layer));
    BlockNodes& own = nodes[static_cast<size_t>(layer)];
    grad = recompute_ == "full" ? recomputed_block_backward(layer, own, grad)
                                : block_backward(layer, own, std::move(grad));
  }
  tape_.begin("backward of the embedding");
  const Tensor lookup_grad =
      tied_grad ? bytes(kWorkspace, param_bytes_.at("embedding")) : weight_grad("embedding");
  accumulate("embedding", tied_grad ? tied_grad : lookup_grad);
}

// One block of nn::Decoder. Without nodes: no autograd.
Stream Replay::block(int64_t layer, const Stream& in, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const bool first = in.delta == nullptr;
  const Tensor x = first ? in.x : make(keep, model_elements());
  const Tensor attention_in = make(keep, model_elements());
  {
    const Tensor inv_rms = make32(keep, num_tokens_);
    if (nodes != nullptr) nodes->attention_norm = {x, inv_rms};
  }
  Tensor y;
  {
    Tensor qkv;
    {
      const bool normed = model_.qk_norm != "none";
      const Tensor projected = make(normed ? keep : kWorkspace, num_tokens_ * qkv_width_);
      qkv = make(keep, num_tokens_ * qkv_width_);
      if (nodes != nullptr) nodes->qkv = {attention_in};
      if (nodes != nullptr && normed)
        nodes->rope = {
            projected,
            make32(keep, num_tokens_ * (model_.qk_norm == "head" ? model_.heads + model_.kv_heads : 2))};
    }
    const Tensor mixed = attention(qkv, nodes);
    if (nodes != nullptr) nodes->out = {mixed};
    y = make(kWorkspace, model_elements());
  }
  Stream out;
  out.x = make(kActivations, model_elements());
  const Tensor ffn_in = make(keep, model_elements());
  {
    const Tensor inv_rms = make32(keep, num_tokens_);
    if (nodes != nullptr) nodes->ffn_norm = {out.x, inv_rms};
  }
  out.delta = feed_forward(layer, ffn_in, nodes);
  return out;
}

// The gradients of the stream that leaves the block become those of the stream that enters it.
Stream Replay::block_backward(int64_t layer, BlockNodes& nodes, Stream grad) {
  const std::string prefix = concat("layers.", layer, ".");
  Tensor grad_sum;
  {
    const Tensor grad_ffn_in = feed_forward_backward(layer, nodes);
    grad_sum = make(kWorkspace, model_elements());
    accumulate(prefix + "ffn_norm", weight_grad(prefix + "ffn_norm"));
  }
  grad = {};
  nodes.ffn_norm.clear();

  Tensor flowing = make(kWorkspace, num_tokens_ * query_width_);
  accumulate(prefix + "attention.out", weight_grad(prefix + "attention.out"));
  nodes.out.clear();
  {
    const Tensor grad_mixed = std::exchange(flowing, {});
    flowing = attention_backward();
  }
  nodes.attention.clear();
  {
    const Tensor grad_rotated = std::exchange(flowing, {});
    flowing = make(kWorkspace, num_tokens_ * qkv_width_);
  }
  if (model_.qk_norm != "none") {
    for (const char* name : {"attention.q_norm", "attention.k_norm"})
      accumulate(prefix + name, weight_grad(prefix + name));
  }
  nodes.rope.clear();
  {
    const Tensor grad_qkv = std::exchange(flowing, {});
    flowing = make(kWorkspace, model_elements());
    accumulate(prefix + "attention.qkv", weight_grad(prefix + "attention.qkv"));
  }
  nodes.qkv.clear();

  Stream result;
  result.x = result.delta = make(kWorkspace, model_elements());
  accumulate(prefix + "attention_norm", weight_grad(prefix + "attention_norm"));
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

Tensor Replay::attention(const Tensor& qkv, BlockNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const int64_t query_elements = num_tokens_ * query_width_;
  const Tensor out = make(keep, query_elements), log_sums = make32(keep, num_tokens_ * model_.heads);
  if (nodes != nullptr) nodes->attention = {qkv, out, log_sums};
  return out;
}

Tensor Replay::attention_backward() {
  if (on_cuda_) {
    const int64_t query_elements = num_tokens_ * query_width_;
    const int64_t key_elements = num_tokens_ * model_.kv_heads * head_dim_;
    Kept grads{make(kWorkspace, query_elements), make(kWorkspace, key_elements),
               make(kWorkspace, key_elements)};
    // cuDNN sums the queries' gradients in fp32.
    { const Tensor sums = make32(kWorkspace, query_elements); }
    return make(kWorkspace, num_tokens_ * qkv_width_);
  }
  return make(kWorkspace, num_tokens_ * qkv_width_);
}

Tensor Replay::feed_forward(int64_t layer, const Tensor& x, BlockNodes* nodes) {
  if (!is_moe(layer)) return dense(model_.ffn_dim, x, nodes != nullptr ? &nodes->dense : nullptr);

  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const int64_t num_logits = num_tokens_ * model_.moe.experts, num_slots = num_rows();
  Tensor logits;
  {
    const Tensor x_fp32 = element_ == 4 ? x : make32(on_cuda_ ? kWorkspace : keep, model_elements());
    logits = make32(keep, num_logits);
    if (nodes != nullptr) nodes->router = {on_cuda_ ? x : x_fp32};
  }
  // Probabilities, and per token the logsumexp.
  Kept route{logits, make32(keep, num_logits), make32(keep, num_tokens_)};
  logits.reset();
  // Chosen experts and their weights, rows by expert and back.
  const Kept routing{make32(keep, num_slots), make32(keep, num_slots), make32(keep, num_slots),
                     make32(keep, num_slots)};
  route.insert(route.end(), routing.begin(), routing.begin() + 2);
  if (nodes != nullptr) nodes->route = route;
  route.clear();
  Tensor y = experts(x, routing, nodes);
  if (model_.moe.shared_experts > 0) {
    const Tensor shared = dense(shared_width(), x, nodes != nullptr ? &nodes->dense : nullptr);
    y = make(kWorkspace, model_elements());
  }
  return y;
}

Tensor Replay::feed_forward_backward(int64_t layer, BlockNodes& nodes) {
  const std::string prefix = concat("layers.", layer, ".");
  if (!is_moe(layer)) return dense_backward(prefix + "ffn.", model_.ffn_dim, nodes.dense);
  Tensor grad_x;
  if (model_.moe.shared_experts > 0)
    grad_x = dense_backward(prefix + "moe.shared.", shared_width(), nodes.dense);
  {
    // Later contributions are added to the first in place.
    Tensor grad_experts = experts_backward(prefix + "moe.", nodes);
    if (!grad_x) grad_x = std::move(grad_experts);
  }
  router_backward(prefix + "moe.", nodes);
  return grad_x;
}

Tensor Replay::dense(int64_t width, const Tensor& x, DenseNodes* nodes) {
  if (nodes == nullptr || recompute_ != "selective") return dense_nodes(width, x, nodes);
  nodes->input = {x};
  return dense_nodes(width, x, nullptr);
}

Tensor Replay::dense_nodes(int64_t width, const Tensor& x, DenseNodes* nodes) {
  const Class keep = nodes != nullptr ? kActivations : kWorkspace;
  const Tensor up = make(keep, num_tokens_ * 2 * width);
  const Tensor activation = make(keep, num_tokens_ * width);
  if (nodes != nullptr) {
    nodes->up = {x};
    nodes->swiglu = {up};
    nodes->down = {activation};
  }
  return make(kWorkspace, model_elements());
}

Tensor Replay::dense_backward(const std::string& prefix, int64_t width, DenseNodes& nodes) {
  Tensor again;  // the output, of the second run
  if (!nodes.input.empty()) again = dense_nodes(width, nodes.input[0], &nodes);
  Tensor flowing = make(kWorkspace, num_tokens_ * width);
  accumulate(prefix + "down", weight_grad(prefix + "down"));
  nodes.down.clear();
  {
    const Tensor grad_activation = std::exchange(flowing, {});
    flowing = make(kWorkspace, num_tokens_ * 2 * width);
  }
  nodes.swiglu.clear();
  const Tensor grad_up = std::exchange(flowing, {});
  Tensor grad_x = make(kWorkspace, model_elements());
  accumulate(prefix + "gate_up", weight_grad(prefix + "gate_up"));
  nodes.up.clear();
  nodes.input.clear();
  return grad_x;
}

// ops::expert_ffn. Rows are gathered on CUDA; the CPU's kernel reads them in place.
Tensor Replay::experts(const Tensor& x, const Kept& routing, BlockNodes* nodes) {
  const bool keep = nodes != nullptr && recompute_ != "selective";
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
  return make(kWorkspace, model_elements());
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
    grad_x = make(kWorkspace, model_elements());
  }
  accumulate(prefix + "down", grad_down);
  accumulate(prefix + "gate_up", grad_gate_up);
  nodes.experts.clear();
  return grad_x;
}

void Replay::router_backward(const std::string& prefix, BlockNodes& nodes) {
  const Tensor grad_logits = make32(kWorkspace, num_tokens_ * model_.moe.experts);
  nodes.route.clear();
  Tensor grad_x;
  if (on_cuda_) {
    {
      const Tensor grad_x_fp32 = make32(kWorkspace, model_elements());
      if (element_ == 2) grad_x = make(kWorkspace, model_elements());
    }
    const Tensor x_fp32 = element_ == 2 ? make32(kWorkspace, model_elements()) : nullptr;
    accumulate(prefix + "router", weight_grad(prefix + "router"));
  } else {
    grad_x = make32(kWorkspace, model_elements());
    accumulate(prefix + "router", weight_grad(prefix + "router"));
    nodes.router.clear();
    if (element_ == 2) {
      const Tensor grad_x_fp32 = std::exchange(grad_x, {});
      grad_x = make(kWorkspace, model_elements());
    }
  }
  nodes.router.clear();
}

// ops::linear_cross_entropy: both gradients are made in the forward pass.
Replay::LossGrads Replay::loss() {
  const std::string output = model_.tied_embeddings ? "embedding" : "output";
  const Tensor token_loss = make32(kWorkspace, num_tokens_);
  LossGrads grads;
  grads.hidden = make(kWorkspace, model_elements());
  const bool sums_apart = !on_cuda_ && element_ == 2;  // the weight's gradient, in fp32
  const Tensor sums = sums_apart ? make32(kWorkspace, model_.vocab * dim_) : nullptr;
  if (!sums_apart) grads.weight = weight_grad(output);
  const Tensor logits =
      make(kWorkspace, ops::loss_chunk_rows(num_tokens_, model_.vocab, element_, !on_cuda_) * model_.vocab);
  if (sums_apart) grads.weight = weight_grad(output);
  return grads;
}

}  // namespace

int64_t MemoryByClass::total() const {
  return weights_bytes + master_bytes + moments_bytes + gradients_bytes + activations_bytes +
         workspace_bytes + input_bytes;
}

MemoryPlan plan_memory(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda) {
  MemoryPlan plan = Replay(config, params, on_cuda).run();
  const config::CheckpointConfig& checkpoint = config.checkpoint;
  if (checkpoint.background && (checkpoint.every > 0 || checkpoint.at_end))
    plan.snapshot_bytes = plan.largest.weights_bytes + plan.largest.master_bytes + plan.largest.moments_bytes;
  plan.snapshot_beside_step =
      plan.snapshot_bytes > 0 && checkpoint.every > 0 && checkpoint.every < config.train.steps;
  return plan;
}

}  // namespace moebius::train
