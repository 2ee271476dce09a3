#include "train/memory_plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/concat.h"
#include "data/planner/plan.h"
#include "ops/linear_loss.h"
#include "parallel/flat_bucket.h"
#include "parallel/layout.h"
#include "train/memory_replay.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace moebius::train {
namespace memory {
namespace {

// libtorch's CUDA allocator hands out multiples of this.
constexpr int64_t kCudaGranularity = 512;
// libtorch's workspace for cuBLAS on sm90, one of the forward and one of the backward thread.
constexpr int64_t kCublasWorkspaceBytes = 2 * (int64_t{32} << 20);

int64_t micro_batch(const config::RunConfig& config) {
  return config.train.micro_batch > 0 ? config.train.micro_batch : config.train.batch;
}

int64_t largest_micro_batch(const config::RunConfig& config) {
  const data::PlanShape shape{.context = config.train.sequence, .rows = micro_batch(config)};
  return config.data.batching == "balanced" ? shape.balanced_capacity() : shape.capacity();
}

int64_t num_key_heads(const config::ModelConfig& model) {
  return model.is_latent() ? model.heads : model.kv_heads;
}

// The model whose activations are those of one of the ranks that split it (parallel.tp). Between the products
// all tokens are counted on every rank, which they are without parallel.sequence_parallel. On a grid of ranks
// heads and hidden units are those of a column, and the tokens those of a row.
config::ModelConfig model_of_rank(const config::RunConfig& config) {
  config::ModelConfig model = config.model;
  const int64_t side = parallel::grid_side(config.parallel);
  const int64_t ranks = side > 1 ? side : config.parallel.tp;
  if (ranks == 1) return model;
  const auto split = [ranks](int64_t& size) { size = (size + ranks - 1) / ranks; };
  if (!model.is_latent()) model.head_dim = model.query_dim();
  if (model.moe.shared_experts > 0) model.moe.shared_dim = (model.moe.shared_width() + ranks - 1) / ranks;
  for (int64_t* size : {&model.heads, &model.kv_heads, &model.ffn_dim, &model.moe.expert_dim, &model.vocab})
    split(*size);
  return model;
}

}  // namespace

bool is_shared(const config::RunConfig& config) {
  return config.parallel.dp > 1 || config.parallel.fsdp > 1 || config.parallel.cp > 1;
}

int64_t shard_ranks(const config::RunConfig& config) {
  return std::max<int64_t>(config.parallel.fsdp, 1) * config.parallel.cp;
}

Replay::Replay(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda)
    : model_(model_of_rank(config)),
      recompute_(recompute_of(config.train.recompute)),
      recompute_layers_(config.train.recompute_layers),
      on_cuda_(on_cuda),
      element_(config.train.precision == "bf16" ? 2 : 4),
      side_(parallel::grid_side(config.parallel)),
      context_ranks_(config.parallel.cp),
      num_tokens_((largest_micro_batch(config) + side_ * context_ranks_ - 1) / (side_ * context_ranks_)),
      num_micro_(config.train.batch / micro_batch(config)),
      dim_(model_.dim),
      stream_dim_((model_.dim + side_ - 1) / side_),
      query_width_(model_.heads * model_.query_dim()),
      key_width_(num_key_heads(model_) * model_.query_dim()),
      value_width_(num_key_heads(model_) * model_.value_dim()),
      out_width_(model_.heads * model_.value_dim()),
      tape_(on_cuda ? kCudaGranularity : 1) {
  allocate_state(config, params);
}

MemoryPlan Replay::run() {
  // From the second micro-batch on, every one finds all gradients there.
  for (int64_t micro = 0; micro < std::min<int64_t>(num_micro_, 2); ++micro) micro_batch_step();
  return tape_.plan();
}

void Replay::accumulate_rest(const std::string& prefix) {
  for (auto param = param_bytes_.lower_bound(prefix);
       param != param_bytes_.end() && param->first.starts_with(prefix); ++param)
    if (grads_.count(param->first) == 0) accumulate_new(param->first);
}

void Replay::allocate_state(const config::RunConfig& config, const nn::ParamTable& params) {
  tape_.begin("between steps");
  const int64_t stage = is_shared(config) ? config.parallel.zero_stage : 0;
  const int64_t ranks = shard_ranks(config);
  const auto share = [ranks](bool is_split, int64_t whole) {
    return is_split ? (whole + ranks - 1) / ranks : whole;
  };
  for (const nn::Param& param : params.params()) {
    const int64_t count = param.num_local_elements();
    const int64_t own_bytes = count * (param.spec.is_fp32 ? 4 : element_);
    const bool is_gathered = stage == 3 && parallel::block_of(param.spec) != parallel::kOutsideBlocks;
    state_.push_back(
        bytes(&MemoryByClass::weights_bytes, share(is_gathered && !param.spec.is_buffer, own_bytes)));
    if (param.spec.is_buffer) continue;
    param_bytes_[param.spec.name] = own_bytes;
    for (int i = 0; i < 2; ++i)
      state_.push_back(bytes(&MemoryByClass::moments_bytes,
                             share(stage >= 1, moment_bytes(param, config.optimizer.state_dtype))));
    // Codes for both directions, and a scale per output (ops/int8_training.h).
    if (config.precision.experts == "int8" && param.spec.is_product &&
        param.spec.klass == nn::ParamClass::expert)
      state_.push_back(bytes(&MemoryByClass::weights_bytes,
                             2 * count + 4 * (count / param.spec.dims.back() + count / param.spec.dims[1])));
    if (element_ == 2 && !param.spec.is_fp32 && config.optimizer.master_weights)
      state_.push_back(bytes(&MemoryByClass::master_bytes, share(stage >= 1, count * 4)));
  }
  if (is_shared(config)) allocate_shared(config, params);
  state_.push_back(bytes(&MemoryByClass::input_bytes, config.train.sequence * model_.rotated_dim() * 4));
  if (on_cuda_) state_.push_back(bytes(kWorkspace, kCublasWorkspaceBytes));
}

// What ranks that share gradients hold beside their state (parallel/data_parallel.h).
void Replay::allocate_shared(const config::RunConfig& config, const nn::ParamTable& params) {
  const config::ParallelConfig& parallel = config.parallel;
  const bool is_split = parallel.zero_stage >= 2;
  std::map<int64_t, int64_t> block_bytes;
  int64_t all_bytes = 0;
  for (const nn::Param& param : params.params()) {
    if (param.spec.is_buffer) continue;
    const int64_t own_bytes = param_bytes_.at(param.spec.name);
    all_bytes += own_bytes;
    block_bytes[parallel::block_of(param.spec)] += own_bytes;
    const int64_t ranks = is_split ? shard_ranks(config) : 1;
    state_.push_back(bytes(kGradients, (own_bytes + ranks - 1) / ranks));
    // Those that autograd makes are copied into buckets and released.
    grads_.emplace(param.spec.name, nullptr);
  }
  if (is_split)  // buckets on their way
    state_.push_back(bytes(kGradients, std::min(all_bytes, static_cast<int64_t>(2e6 * parallel.bucket_mb))));
  if (parallel.zero_stage < 3) return;
  // Blocks at hand: the one that computes and the next.
  std::vector<int64_t> largest{0, 0};
  for (const auto& [block, own_bytes] : block_bytes)
    if (block != parallel::kOutsideBlocks) largest.push_back(own_bytes);
  std::sort(largest.rbegin(), largest.rend());
  state_.push_back(bytes(&MemoryByClass::weights_bytes, largest[0] + largest[1]));
}

Stream Replay::forward(std::vector<BlockNodes>& nodes) {
  tape_.begin("forward of the embedding");
  Stream stream{make(kActivations, model_elements()), {}};
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    tape_.begin(concat("forward of layer ", layer));
    BlockNodes& own = nodes[static_cast<size_t>(layer)];
    if (is_full(layer)) {
      own.recompute = {stream.x, stream.delta};
      stream = block(layer, stream, nullptr);
    } else {
      stream = block(layer, stream, &own);
    }
  }
  return stream;
}

// nn::MultiToken and its block, from the model's final states.
Stream Replay::multi_token(const Tensor& x, BlockNodes& nodes) {
  tape_.begin("forward of multi-token prediction");
  const Tensor embedding = make(kActivations, model_elements());
  const Tensor both = make(kActivations, 2 * model_elements());
  nodes.multi_token = {x, embedding, both, make32(kActivations, 2 * num_tokens_)};
  { const Kept normed{make(kWorkspace, model_elements()), make(kWorkspace, model_elements())}; }
  const Stream in{make(kActivations, model_elements()), {}};
  if (!is_full(model_.layers)) return block(model_.layers, in, &nodes);
  nodes.recompute = {in.x, in.delta};
  return block(model_.layers, in, nullptr);
}

// Returns the gradient that joins that of the model's states.
Stream Replay::multi_token_backward(BlockNodes& nodes) {
  tape_.begin("backward of multi-token prediction");
  Stream grad;
  grad.x = grad.delta = make(kWorkspace, model_elements());
  grad = is_full(model_.layers) ? recomputed_block_backward(model_.layers, nodes, grad)
                                : block_backward(model_.layers, nodes, std::move(grad));
  accumulate_rest("mtp.");
  nodes.multi_token.clear();
  const Tensor both = make(kWorkspace, 2 * model_elements());
  Stream joined;
  joined.x = joined.delta = make(kWorkspace, model_elements());
  return joined;
}

void Replay::backward(std::vector<BlockNodes>& nodes, Stream grad) {
  for (int64_t layer = model_.layers - 1; layer >= 0; --layer) {
    tape_.begin(concat("backward of layer ", layer));
    BlockNodes& own = nodes[static_cast<size_t>(layer)];
    grad = is_full(layer) ? recomputed_block_backward(layer, own, grad)
                          : block_backward(layer, own, std::move(grad));
  }
}

void Replay::micro_batch_step() {
  // Tokens and targets of 8 bytes, positions and sequence numbers of 4.
  const Tensor input = bytes(&MemoryByClass::input_bytes, side_ * num_tokens_ * 24);
  const bool multi = model_.mtp.depth > 0;
  std::vector<BlockNodes> nodes(static_cast<size_t>(model_.layers + model_.mtp.depth));
  Kept final_norm, mtp_norm;
  Tensor hidden, mtp_hidden;
  {
    Stream stream = forward(nodes);
    const Tensor sum = make(kActivations, model_elements());
    final_norm = {sum, make32(kActivations, num_tokens_)};
    hidden = make(kActivations, model_elements());
    if (side_ > 1) hidden = make(kActivations, region_elements());
    if (multi) {
      stream = multi_token(hidden, nodes.back());
      mtp_norm = {make(kActivations, model_elements()), make32(kActivations, num_tokens_)};
      mtp_hidden = make(kActivations, model_elements());
    }
  }
  tape_.begin("loss");
  LossGrads grads = loss();
  // The loss's backward hands out what its forward has made; the output layer's gradient waits for the
  // embedding's when they are one parameter.
  Tensor tied_grad;
  if (multi) {
    const LossGrads further = loss(true);
    mtp_norm.clear();
  }
  const std::string output = model_.tied_embeddings ? "embedding" : "output";
  // On a grid the gradient of the gathered rows is summed into that of this rank's block.
  if (side_ > 1) grads.weight = weight_grad(output);
  if (model_.tied_embeddings) {
    tied_grad = grads.weight;
  } else {
    accumulate(output, grads.weight);
  }
  grads.weight.reset();
  if (multi) multi_token_backward(nodes.back());  // joins the loss's gradient in place
  Stream grad;
  grad.x = grad.delta = make(kWorkspace, model_elements());
  accumulate_new("final_norm");
  grads = {};
  final_norm.clear();
  backward(nodes, std::move(grad));
  tape_.begin("backward of the embedding");
  const Tensor lookup_grad =
      tied_grad ? bytes(kWorkspace, param_bytes_.at("embedding")) : weight_grad("embedding");
  accumulate("embedding", tied_grad ? tied_grad : lookup_grad);
}

// ops::linear_cross_entropy: both gradients are made in the forward pass.
Replay::LossGrads Replay::loss(bool further) {
  const std::string output = model_.tied_embeddings ? "embedding" : "output";
  const Tensor token_loss = make32(kWorkspace, num_tokens_);
  LossGrads grads;
  grads.hidden = make(kWorkspace, region_elements());
  const Tensor gathered = side_ > 1 ? make(kWorkspace, model_.vocab * dim_) : nullptr;
  const bool sums_apart = !on_cuda_ && element_ == 2;  // the weight's gradient, in fp32
  const Tensor sums = sums_apart ? make32(kWorkspace, model_.vocab * dim_) : nullptr;
  const auto weight = [&] {
    if (side_ > 1) return make(kWorkspace, model_.vocab * dim_);
    return further ? bytes(kWorkspace, param_bytes_.at(output)) : weight_grad(output);
  };
  if (!sums_apart) grads.weight = weight();
  const Tensor logits =
      make(kWorkspace, ops::loss_chunk_rows(num_tokens_, model_.vocab, element_, !on_cuda_) * model_.vocab);
  if (sums_apart) grads.weight = weight();
  return grads;
}

}  // namespace memory

int64_t MemoryByClass::total() const {
  return weights_bytes + master_bytes + moments_bytes + gradients_bytes + activations_bytes +
         workspace_bytes + input_bytes;
}

MemoryPlan plan_memory(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda) {
  MemoryPlan plan = memory::Replay(config, params, on_cuda).run();
  const config::CheckpointConfig& checkpoint = config.checkpoint;
  if (checkpoint.background && (checkpoint.every > 0 || checkpoint.at_end))
    plan.snapshot_bytes = plan.largest.weights_bytes + plan.largest.master_bytes + plan.largest.moments_bytes;
  // Ranks write about as much each.
  if (memory::is_shared(config) && config.parallel.zero_stage == 0)
    plan.snapshot_bytes /= std::max<int64_t>(config.parallel.dp, 1) * memory::shard_ranks(config);
  plan.snapshot_beside_step =
      plan.snapshot_bytes > 0 && checkpoint.every > 0 && checkpoint.every < config.train.steps;
  return plan;
}

}  // namespace moebius::train
