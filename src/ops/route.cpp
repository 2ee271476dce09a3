#include "ops/route.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

kernels::RouteOptions kernel_options(const at::Tensor& logits, const RouteOptions& options) {
  return {logits.size(0),
          logits.size(1),
          options.top_k,
          options.score,
          options.softmax_after_topk,
          options.normalize,
          static_cast<float>(options.scale),
          options.num_groups,
          options.top_groups,
          options.group_top2};
}

const float* floats_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}
const int32_t* ints_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<int32_t>() : nullptr;
}

at::Tensor scores_of(const at::Tensor& logits, const RouteOptions& options) {
  return options.score == kernels::Score::sigmoid ? at::sigmoid(logits) : at::softmax(logits, 1);
}

// The weights of chosen experts, as the kernels compute them.
at::Tensor weights_of(const at::Tensor& logits, const at::Tensor& experts, const RouteOptions& options) {
  const at::Tensor chosen = experts.to(at::kLong);
  at::Tensor weights;
  if (options.softmax_after_topk) {
    weights = at::softmax(logits.gather(1, chosen), 1);
  } else {
    weights = scores_of(logits, options).gather(1, chosen);
    if (options.normalize) weights = weights / (weights.sum(1, true) + 1e-20);
  }
  return weights * options.scale;
}

// The CUDA kernel knows one group.
bool groups_apart(const at::Tensor& logits, const RouteOptions& options) {
  return !logits.is_cpu() && options.top_groups < options.num_groups;
}

// Outputs: weights, experts, aux loss, z loss, counts, entropy, sums of probabilities.
class Route : public Function<Route> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits,
                               const std::optional<at::Tensor>& bias_or,
                               const std::optional<at::Tensor>& segments_or, int64_t num_segments,
                               const RouteOptions& options) {
    const at::Tensor bias = bias_or.value_or(at::Tensor()), segments = segments_or.value_or(at::Tensor());
    const int64_t num_tokens = logits.size(0), num_experts = logits.size(1), top_k = options.top_k;
    const auto f32 = logits.options();
    at::Tensor probs = at::empty_like(logits);
    at::Tensor experts = at::empty({num_tokens, top_k}, f32.dtype(at::kInt));
    at::Tensor weights = at::empty({num_tokens, top_k}, f32);
    at::Tensor lse = at::empty({num_tokens}, f32);
    at::Tensor prob_sum = at::empty({num_segments, num_experts}, f32);
    at::Tensor counts = at::empty({num_segments, num_experts}, f32);
    at::Tensor sums = at::empty({2}, f32);  // entropy, lse^2
    if (num_tokens > 0) {
      kernels::RouteForwardArgs args{};
      args.options = kernel_options(logits, options);
      const bool apart = groups_apart(logits, options);
      if (apart) args.options.num_groups = args.options.top_groups = 1;
      args.logits = logits.const_data_ptr<float>();
      args.bias = floats_or_null(bias);
      args.probs = probs.mutable_data_ptr<float>();
      args.experts = experts.mutable_data_ptr<int32_t>();
      args.weights = weights.mutable_data_ptr<float>();
      args.lse = lse.mutable_data_ptr<float>();
      const kernels::KernelTable& table = kernel_table(logits.device());
      table.route_forward(args, current_stream(logits.device()));
      if (apart) {
        experts.copy_(choose_in_groups(logits, bias, options));
        weights.copy_(weights_of(logits, experts, options));
      }
      kernels::RouteStatsArgs stats{};
      stats.options = args.options;
      stats.probs = args.probs;
      stats.experts = args.experts;
      stats.lse = args.lse;
      stats.segments = ints_or_null(segments);
      stats.num_segments = num_segments;
      stats.prob_sum = prob_sum.mutable_data_ptr<float>();
      stats.counts = counts.mutable_data_ptr<float>();
      stats.entropy_sum = sums.mutable_data_ptr<float>();
      stats.lse_sq_sum = stats.entropy_sum + 1;
      table.route_stats(stats, current_stream(logits.device()));
    } else {
      for (at::Tensor* t : {&prob_sum, &counts, &sums}) t->zero_();
    }

    // With n tokens in a segment, f_e = counts_e / (n K) and P_e = prob_sum_e / n, the loss is linear in the
    // probabilities: sum over segments and experts of coefficient * prob_sum, coefficient = E / S * counts /
    // (n^2 K).
    at::Tensor coefficient;
    const double shared =
        static_cast<double>(num_experts) * static_cast<double>(top_k) / static_cast<double>(num_segments);
    if (num_segments == 1) {
      const double slots = static_cast<double>(std::max<int64_t>(num_tokens, 1) * top_k);
      coefficient = counts * (shared / (slots * slots));
    } else {
      coefficient = counts / counts.sum(1, true).clamp_min_(1.0).square_().mul_(1.0 / shared);
    }
    at::Tensor aux_loss = at::dot(coefficient.view(-1), prob_sum.view(-1));
    const at::Tensor means = sums.mul_(1.0 / static_cast<double>(std::max<int64_t>(num_tokens, 1)));
    at::Tensor entropy = means.select(0, 0).clone(), z_loss = means.select(0, 1).clone();
    at::Tensor counts_E = num_segments == 1 ? counts.view({num_experts}) : counts.sum(0);

    ctx->save_for_backward({logits, probs, experts, weights, lse, segments, coefficient});
    ctx->saved_data["top_k"] = top_k;
    ctx->saved_data["score"] = static_cast<int64_t>(options.score);
    ctx->saved_data["softmax_after_topk"] = options.softmax_after_topk;
    ctx->saved_data["normalize"] = options.normalize;
    ctx->saved_data["scale"] = options.scale;
    ctx->mark_non_differentiable({experts, counts_E, entropy});
    ctx->set_materialize_grads(false);
    return {weights, experts, aux_loss, z_loss, counts_E, entropy, prob_sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor &grad_weights = grads[0], &grad_aux = grads[2], &grad_z = grads[3],
                     &grad_prob_sum = grads[6];
    if (!grad_weights.defined() && !grad_aux.defined() && !grad_z.defined() && !grad_prob_sum.defined())
      return variable_list(5);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &logits = saved[0], &weights = saved[3], &segments = saved[5], &coefficient = saved[6];
    at::Tensor grad_logits = at::empty_like(logits);
    if (logits.numel() == 0) return {grad_logits, {}, {}, {}, {}};
    RouteOptions options;
    options.top_k = ctx->saved_data["top_k"].toInt();
    options.score = static_cast<kernels::Score>(ctx->saved_data["score"].toInt());
    options.softmax_after_topk = ctx->saved_data["softmax_after_topk"].toBool();
    options.normalize = ctx->saved_data["normalize"].toBool();
    options.scale = ctx->saved_data["scale"].toDouble();

    const at::Tensor grad_weights_TK =
        grad_weights.defined() ? grad_weights.contiguous() : at::zeros_like(weights);
    at::Tensor grad_probs, grad_lse_sq;
    if (grad_aux.defined()) grad_probs = coefficient * grad_aux;
    if (grad_prob_sum.defined())
      grad_probs = grad_probs.defined() ? grad_probs + grad_prob_sum : grad_prob_sum.contiguous();
    if (grad_z.defined()) grad_lse_sq = grad_z / static_cast<double>(logits.size(0));
    kernels::RouteBackwardArgs args{};
    args.options = kernel_options(logits, options);
    args.logits = logits.const_data_ptr<float>();
    args.probs = saved[1].const_data_ptr<float>();
    args.experts = saved[2].const_data_ptr<int32_t>();
    args.weights = weights.const_data_ptr<float>();
    args.lse = saved[4].const_data_ptr<float>();
    args.grad_weights = grad_weights_TK.const_data_ptr<float>();
    args.grad_probs = floats_or_null(grad_probs);
    args.segments = ints_or_null(segments);
    args.grad_lse_sq = floats_or_null(grad_lse_sq);
    args.grad_logits = grad_logits.mutable_data_ptr<float>();
    kernel_table(logits.device()).route_backward(args, current_stream(logits.device()));
    return {grad_logits, {}, {}, {}, {}};
  }
};

void check_input(const at::Tensor& logits, const at::Tensor& bias, const at::Tensor& segments,
                 int64_t num_segments, const RouteOptions& options) {
  MOEBIUS_CHECK(logits.dim() == 2 && logits.scalar_type() == at::kFloat, "router logits are ", logits.sizes(),
                " ", logits.scalar_type());
  const int64_t num_experts = logits.size(1);
  MOEBIUS_CHECK(num_experts >= 1 && num_experts <= 1024, "experts: ", num_experts);
  MOEBIUS_CHECK(options.top_k >= 1 && options.top_k <= std::min<int64_t>(32, num_experts), "top_k ",
                options.top_k, " of ", num_experts, " experts");
  MOEBIUS_CHECK(logits.size(0) * options.top_k <= INT32_MAX, "too many slots: ", logits.sizes(), " top ",
                options.top_k);
  MOEBIUS_CHECK(!options.softmax_after_topk || options.score == kernels::Score::softmax,
                "softmax after top-k needs softmax scores");
  MOEBIUS_CHECK(options.num_groups >= 1 && num_experts % options.num_groups == 0 && options.top_groups >= 1 &&
                    options.top_groups <= options.num_groups &&
                    options.top_k <= options.top_groups * (num_experts / options.num_groups),
                options.top_k, " experts of ", options.top_groups, " of ", options.num_groups, " groups of ",
                num_experts, " experts");
  MOEBIUS_CHECK_GE(num_segments, 1);
  if (bias.defined()) {
    MOEBIUS_CHECK(bias.dim() == 1 && bias.size(0) == num_experts && bias.scalar_type() == at::kFloat &&
                      bias.device() == logits.device(),
                  "bias is ", bias.sizes(), " ", bias.scalar_type(), " for logits ", logits.sizes());
  }
  if (segments.defined()) {
    MOEBIUS_CHECK(segments.dim() == 1 && segments.size(0) == logits.size(0) &&
                      segments.scalar_type() == at::kInt && segments.device() == logits.device(),
                  "segments are ", segments.sizes(), " ", segments.scalar_type(), " for logits ",
                  logits.sizes());
  } else {
    MOEBIUS_CHECK_EQ(num_segments, 1, "without segment numbers");
  }
}

}  // namespace

at::Tensor choose_in_groups(const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const RouteOptions& options) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int64_t num_groups = options.num_groups;
  at::Tensor keys =
      bias_E.defined() || options.group_top2 ? scores_of(logits_TE, options) : logits_TE.detach();
  if (bias_E.defined()) keys = keys + bias_E;
  // As in the kernels: what is no number counts as the lowest, and nothing is as low as what is taken out.
  keys = at::nan_to_num(keys, std::numeric_limits<float>::lowest(), kInfinity,
                        std::numeric_limits<float>::lowest());
  const at::Tensor grouped = keys.unflatten(1, {num_groups, -1});
  const at::Tensor worth = options.group_top2 ? std::get<0>(at::topk(grouped, 2, 2)).sum(2) : grouped.amax(2);
  const at::Tensor ranked = std::get<1>(at::sort(worth, /*stable=*/true, 1, /*descending=*/true));
  const at::Tensor kept =
      at::zeros_like(worth).scatter_(1, ranked.narrow(1, 0, options.top_groups), 1.0).to(at::kBool);
  keys = grouped.masked_fill(kept.logical_not().unsqueeze(2), -kInfinity).flatten(1);
  return std::get<1>(at::sort(keys, /*stable=*/true, 1, /*descending=*/true))
      .narrow(1, 0, options.top_k)
      .to(at::kInt);
}

SlotOrder sort_by_expert(const at::Tensor& experts_TK, int64_t num_experts, int64_t capacity) {
  MOEBIUS_CHECK(experts_TK.scalar_type() == at::kInt && experts_TK.is_contiguous(), "experts are ",
                experts_TK.sizes(), " ", experts_TK.scalar_type());
  const int64_t num_slots = experts_TK.numel();
  const auto i32 = experts_TK.options();
  SlotOrder sorted{at::empty({num_slots}, i32), at::empty({num_slots}, i32),
                   num_slots == 0 ? at::zeros({num_experts + 1}, i32) : at::empty({num_experts + 1}, i32)};
  if (num_slots == 0) return sorted;
  kernels::SortByExpertArgs args{};
  args.experts = experts_TK.const_data_ptr<int32_t>();
  args.num_slots = num_slots;
  args.num_experts = num_experts;
  args.capacity = capacity;
  args.order = sorted.order_R.mutable_data_ptr<int32_t>();
  args.inverse = sorted.inverse_R.mutable_data_ptr<int32_t>();
  args.offsets = sorted.offsets_E1.mutable_data_ptr<int32_t>();
  kernel_table(experts_TK.device()).sort_by_expert(args, current_stream(experts_TK.device()));
  return sorted;
}

Routing route(const at::Tensor& logits_TE, const at::Tensor& bias_E, const at::Tensor& segments_T,
              int64_t num_segments, const RouteOptions& options) {
  check_input(logits_TE, bias_E, segments_T, num_segments, options);
  std::optional<at::Tensor> bias, segments;  // an operator of autograd takes no undefined tensor
  if (bias_E.defined()) bias = bias_E.detach().contiguous();
  if (segments_T.defined()) segments = segments_T.contiguous();
  const variable_list out = Route::apply(logits_TE.contiguous(), bias, segments, num_segments, options);

  Routing routing;
  routing.weights_TK = out[0];
  routing.experts_TK = out[1];
  routing.aux_loss = out[2];
  routing.z_loss = out[3];
  routing.counts_E = out[4];
  routing.entropy = out[5];
  routing.prob_sum_SE = out[6];
  SlotOrder sorted = sort_by_expert(routing.experts_TK, logits_TE.size(1), options.capacity);
  routing.order_R = std::move(sorted.order_R);
  routing.inverse_R = std::move(sorted.inverse_R);
  routing.offsets_E1 = std::move(sorted.offsets_E1);
  return routing;
}

}  // namespace moebius::ops
