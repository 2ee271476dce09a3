#include "tune/step_cost.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"

namespace moebius::tune {
namespace {

constexpr double kBf16 = 2;
// Bytes per parameter that the optimizer reads and writes: bf16 weight and gradient, fp32 master and moments.
constexpr double kOptimizerBytes = 28;
// Bytes per parameter that are held: bf16 weights, fp32 sums of gradients, fp32 master weights and moments.
constexpr double kWeightBytes = 2, kGradientBytes = 4, kStateBytes = 12;
// Reads and writes of the residual stream's size per layer beside products: norms, rotations, gathers, sums.
// What our measured steps on an H200 leave when the measured products are taken out (docs/scaling.md).
constexpr double kPasses = 130;
constexpr double kLinkShare = 0.8;

// Rates measured on an H200 (docs/benchmarks/2026-11-28-h200-experts.md, design ceilings in docs/scaling.md).
// An H100 SXM has the same chip and power limit, and other memory.
Gpu hopper(const std::string& name, double memory_gib, double memory_bytes_per_s) {
  return {.name = name,
          .peak_flops = 989.5e12,
          .memory_bytes = memory_gib * 1024 * 1024 * 1024,
          .memory_bytes_per_s = memory_bytes_per_s,
          .dense_flops = 680e12,
          .expert_flops = 620e12,
          .attention_forward_flops = 547e12,
          .attention_backward_flops = 451e12};
}

// Model dims as the formulas want them.
struct Shape {
  double layers, dim, qkv, out, ffn, experts, top_k, vocab, channels, sequence;

  double attention_weights() const { return dim * (qkv + out) + dim * experts; }
  double expert_weights() const { return 3 * dim * ffn; }  // of one
  double embedding_weights() const { return 2 * vocab * dim; }
};

Shape shape_of(const config::RunConfig& config) {
  const config::ModelConfig& model = config.model;
  if (model.is_latent() || model.moe.experts == 0 || !model.moe.dense_layers.empty() ||
      model.moe.shared_experts > 0)
    throw_user_error(
        "a step can be predicted for models with grouped-head attention and routed experts alone in every "
        "layer; "
        "latent attention, dense layers and shared experts are not in the formulas");
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  const double head = number(model.query_dim()), heads = number(model.heads);
  return {.layers = number(model.layers),
          .dim = number(model.dim),
          .qkv = (heads + 2 * number(model.kv_heads)) * head,
          .out = heads * head,
          .ffn = number(model.moe.expert_dim),
          .experts = number(model.moe.experts),
          .top_k = number(model.moe.top_k),
          .vocab = number(model.vocab),
          .channels = 2 * heads * head,
          .sequence = number(config.train.sequence)};
}

class Costs {
 public:
  explicit Costs(const Cluster& cluster) : cluster_(cluster) {}

  // Forward of (rows, n) = (rows, k) x (k, n), `count` times.
  double product(double count, double rows, double n, double k, double flops) const {
    const double bytes = kBf16 * (rows * k + rows * n + n * k);
    return count * std::max(2 * rows * n * k / flops, bytes / cluster_.gpu.memory_bytes_per_s);
  }

  // All-gather or reduce-scatter of `total` bytes over `size` ranks that are `stride` apart.
  double ring(double total, int64_t size, int64_t stride) const {
    if (size <= 1) return 0;
    const double here = per_node(size, stride), all = static_cast<double>(size);
    const double inside = total * (here - 1) / here / cluster_.node_bytes_per_s;
    const double outside = here < all ? total * (1 - here / all) / (here * cluster_.network_bytes_per_s) : 0;
    return std::max(inside, outside);
  }

  // Every rank has `own` bytes, the same for each of the others.
  double all_to_all(double own, int64_t size, int64_t stride) const {
    if (size <= 1) return 0;
    const double here = per_node(size, stride), all = static_cast<double>(size);
    return std::max(own * (here - 1) / all / cluster_.node_bytes_per_s,
                    own * (all - here) / all / cluster_.network_bytes_per_s);
  }

 private:
  // Ranks of a group that share a node.
  double per_node(int64_t size, int64_t stride) const {
    return static_cast<double>(std::max<int64_t>(1, std::min(size, cluster_.gpus_per_node / stride)));
  }

  const Cluster& cluster_;
};

int64_t data_ranks(const Cluster& cluster, const CostLayout& layout) {
  return cluster.num_gpus / (layout.pp * layout.tp);
}

double num_micro_batches(const config::RunConfig& config, const Cluster& cluster, const CostLayout& layout) {
  return static_cast<double>(config.train.batch / (data_ranks(cluster, layout) * layout.micro_batch));
}

}  // namespace

Cluster parse_cluster(const std::string& text) {
  const size_t cross = text.find('x');
  int64_t count = 0;
  if (cross != std::string::npos) std::from_chars(text.data() + cross + 1, text.data() + text.size(), count);
  const std::string name = text.substr(0, cross);
  if (count < 1 || (name != "h100" && name != "h200"))
    throw_user_error("--cluster: '", text,
                     "' is not a kind and a number of GPUs, such as h100x128 or h200x8");
  return {.gpu = name == "h100" ? hopper("H100", 80, 0.88 * 3.35e12) : hopper("H200", 141, 4.27e12),
          .num_gpus = count,
          .node_bytes_per_s = kLinkShare * 450e9,
          .network_bytes_per_s = kLinkShare * 50e9};
}

std::string CostLayout::text() const {
  std::string text = concat("tp ", tp, ", pp ", pp);
  if (virtual_stages > 1) text += concat(" x ", virtual_stages);
  text +=
      concat(", ep ", ep, ", expert_tp ", expert_tp, ", zero ", zero_stage, ", micro-batch ", micro_batch);
  return text;
}

CostLayout layout_of(const config::RunConfig& config) {
  const config::ParallelConfig& parallel = config.parallel;
  return {.tp = parallel.tp,
          .pp = parallel.pp,
          .ep = parallel.ep,
          .expert_tp = parallel.expert_tp == 0 ? parallel.tp : parallel.expert_tp,
          .zero_stage = parallel.zero_stage,
          .micro_batch = std::max<int64_t>(1, config.train.micro_batch)};
}

std::string misfit(const config::RunConfig& config, const Cluster& cluster, const CostLayout& layout) {
  const config::ModelConfig& model = config.model;
  const int64_t stage = cluster.num_gpus / layout.pp;
  if (cluster.num_gpus % (layout.pp * layout.tp) != 0)
    return concat(cluster.num_gpus, " GPUs are no multiple of tp x pp = ", layout.pp * layout.tp);
  if (stage % (layout.ep * layout.expert_tp) != 0)
    return concat("a stage of ", stage,
                  " GPUs is no multiple of ep x expert_tp = ", layout.ep * layout.expert_tp);
  if (model.heads % layout.tp != 0 || model.kv_heads % layout.tp != 0)
    return concat("tp = ", layout.tp, " does not divide ", model.heads, " heads and ", model.kv_heads,
                  " key and value heads");
  if (model.moe.experts % layout.ep != 0)
    return concat("ep = ", layout.ep, " does not divide ", model.moe.experts, " experts");
  if (model.layers < layout.pp * layout.virtual_stages)
    return concat(model.layers, " layers are too few for ", layout.pp * layout.virtual_stages, " stages");
  const int64_t together = data_ranks(cluster, layout) * layout.micro_batch;
  if (config.train.batch % together != 0)
    return concat("a batch of ", config.train.batch, " sequences is no multiple of ", together,
                  " = data ranks x micro-batch");
  return {};
}

StepCost predict_step(const config::RunConfig& config, const Cluster& cluster, const CostLayout& layout) {
  const std::string reason = misfit(config, cluster, layout);
  MOEBIUS_CHECK(reason.empty(), reason);
  const Shape shape = shape_of(config);
  const Gpu& gpu = cluster.gpu;
  const Costs costs(cluster);
  const auto tp = static_cast<double>(layout.tp), pp = static_cast<double>(layout.pp),
             ep = static_cast<double>(layout.ep), expert_tp = static_cast<double>(layout.expert_tp);
  const int64_t data = data_ranks(cluster, layout);
  const int64_t expert_data = cluster.num_gpus / (layout.pp * layout.ep * layout.expert_tp);
  const double micro_batches = num_micro_batches(config, cluster, layout);
  // Between products of a tensor group each rank has a part of the tokens.
  const double group_tokens = static_cast<double>(layout.micro_batch) * shape.sequence,
               tokens = group_tokens / tp;

  // Per layer and micro-batch, forward and backward; a backward pass has twice the arithmetic of a forward
  // one.
  StepCost layer;
  layer.dense = 3 * (costs.product(1, group_tokens, shape.qkv / tp, shape.dim, gpu.dense_flops) +
                     costs.product(1, group_tokens, shape.dim, shape.out / tp, gpu.dense_flops));
  const double attention_flops = group_tokens * shape.sequence / 2 * 2 * shape.channels / tp;
  layer.attention = attention_flops * (1 / gpu.attention_forward_flops + 2 / gpu.attention_backward_flops);
  const double own_experts = shape.experts / ep;
  const double expert_rows = tokens * shape.top_k * expert_tp / own_experts;
  layer.experts =
      3 * (costs.product(own_experts, expert_rows, 2 * shape.ffn / expert_tp, shape.dim, gpu.expert_flops) +
           costs.product(own_experts, expert_rows, shape.dim, shape.ffn / expert_tp, gpu.expert_flops));
  layer.passes = kPasses * tokens * shape.dim * kBf16 / gpu.memory_bytes_per_s;
  // Gathered before and scattered after the products, the same backward, and gathered again for weight
  // gradients.
  layer.tensor = 5 * costs.ring(group_tokens * shape.dim * kBf16, layout.tp, 1);
  const double routed_bytes = tokens * shape.top_k * shape.dim * kBf16;
  layer.dispatch = 4 * costs.all_to_all(routed_bytes, layout.ep, layout.expert_tp);
  layer.expert_tensor = 5 * costs.ring(routed_bytes * expert_tp, layout.expert_tp, 1);

  // The fullest stage sets the pace.
  const double stage_layers = std::ceil(shape.layers / (pp * static_cast<double>(layout.virtual_stages))) *
                              static_cast<double>(layout.virtual_stages);
  const double times = micro_batches * stage_layers;
  StepCost step;
  step.dense =
      times * layer.dense +
      micro_batches / pp * 3 * costs.product(1, group_tokens, shape.vocab / tp, shape.dim, gpu.dense_flops);
  step.attention = times * layer.attention;
  step.experts = times * layer.experts;
  step.passes = times * layer.passes;
  step.tensor = times * layer.tensor;
  step.dispatch = times * layer.dispatch;
  step.expert_tensor = times * layer.expert_tensor;
  const double busy = step.dense + step.attention + step.experts + step.passes + step.tensor + step.dispatch +
                      step.expert_tensor;
  step.bubble = busy / micro_batches * (pp - 1) / static_cast<double>(layout.virtual_stages);

  const double dense_here = (shape.layers * shape.attention_weights() + shape.embedding_weights()) / tp / pp;
  const double experts_here = shape.layers * shape.experts * shape.expert_weights() / expert_tp / ep / pp;
  const auto exchange = [&](double bytes) {
    return costs.ring(dense_here * bytes, data, layout.tp) +
           costs.ring(experts_here * bytes, expert_data, layout.ep * layout.expert_tp);
  };
  if (layout.zero_stage == 3) {
    step.weights = micro_batches * 3 * exchange(kWeightBytes);
    if (layout.hides) step.weights = std::max(0.0, step.weights - busy);
  } else {
    step.gradients = exchange(kGradientBytes + kWeightBytes);
    // Behind the last backward pass.
    if (layout.hides) step.gradients = std::max(0.0, step.gradients - busy / micro_batches * 2 / 3);
  }
  if (layout.pp > 1 && !layout.hides)
    step.stages = micro_batches * 2 * static_cast<double>(layout.virtual_stages) * tokens * shape.dim *
                  kBf16 / cluster.network_bytes_per_s;
  const double shard = layout.zero_stage > 0 ? dense_here / static_cast<double>(data) +
                                                   experts_here / static_cast<double>(expert_data)
                                             : dense_here + experts_here;
  step.optimizer = kOptimizerBytes * shard / gpu.memory_bytes_per_s;
  step.seconds = busy + step.bubble + step.weights + step.gradients + step.stages + step.optimizer;

  const double weights_used =
      shape.layers * (shape.attention_weights() + shape.top_k * shape.expert_weights()) +
      shape.vocab * shape.dim;
  const double flops = (6 * weights_used + 6 * shape.layers * shape.sequence / 2 * shape.channels) *
                       static_cast<double>(config.train.batch) * shape.sequence;
  step.mfu = flops / (step.seconds * gpu.peak_flops * static_cast<double>(cluster.num_gpus));

  const double here = dense_here + experts_here;
  // Kept per token and layer: stream twice, both norms' results, projections, attention's output, experts'
  // input and pre-activation (ops/experts.h).
  const double kept = tokens * kBf16 * (4 * shape.dim + shape.qkv + shape.out + shape.top_k * 2 * shape.ffn) *
                      shape.layers / pp;
  const double in_flight = std::min(micro_batches, pp);
  step.bytes = (layout.zero_stage == 3 ? shard : here) * kWeightBytes +
               (layout.zero_stage >= 2 ? shard : here) * kGradientBytes + shard * kStateBytes +
               kept * in_flight;
  return step;
}

std::vector<Choice> best_layouts(const config::RunConfig& config, const Cluster& cluster, size_t count,
                                 int64_t virtual_stages, bool hides) {
  std::vector<Choice> choices;
  const auto add = [&](const CostLayout& layout) {
    if (!misfit(config, cluster, layout).empty()) return;
    const StepCost cost = predict_step(config, cluster, layout);
    // A tenth is left for buffers and fragments.
    if (cost.bytes <= 0.9 * cluster.gpu.memory_bytes) choices.push_back({layout, cost});
  };
  CostLayout layout;
  layout.hides = hides;
  for (layout.tp = 1; layout.tp <= cluster.gpus_per_node; layout.tp *= 2)
    for (layout.pp = 1; layout.pp <= cluster.num_gpus; layout.pp *= 2)
      for (layout.ep = 1; layout.ep <= config.model.moe.experts; layout.ep *= 2)
        for (layout.micro_batch = 1; layout.micro_batch <= 4; layout.micro_batch *= 2)
          for (layout.zero_stage = 1; layout.zero_stage <= 3; layout.zero_stage += 2) {
            layout.virtual_stages = layout.pp > 1 ? virtual_stages : 1;
            layout.expert_tp = 1;
            add(layout);
            if (layout.tp == 1) continue;
            layout.expert_tp = layout.tp;
            add(layout);
          }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.cost.seconds < b.cost.seconds; });
  if (choices.size() > count) choices.resize(count);
  return choices;
}

}  // namespace moebius::tune
