// Shapes: T tokens, D model width, E experts.
#include "moe/router.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "base/check.h"
#include "ops/linear.h"

namespace moebius::moe {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// An fp32 tensor as the sum of two bf16 ones, exact to 2^-17 of each value.
struct Halves {
  at::Tensor high, low;
  explicit Halves(const at::Tensor& x) : high(x.to(at::kBFloat16)), low((x - high).to(at::kBFloat16)) {}
};

// The logits on a device, in fp32. For bf16 tokens the fp32 products, which run on no matrix unit, become
// bf16 ones of the halves with fp32 sums: exact in x, and to 2^-16 in the weights and gradients. Else the
// fp32 copy of x is made anew in the backward pass instead of being kept.
class RouterLogits : public torch::autograd::Function<RouterLogits> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& weight_ED) {
    ctx->save_for_backward({x_TD, weight_ED});
    if (!in_halves(x_TD)) return at::mm(x_TD.to(at::kFloat), weight_ED.t());
    const Halves weight(weight_ED);
    return sum_of_halves(at::mm(x_TD, at::cat({weight.high, weight.low}).t(), at::kFloat), 1);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x_TD = saved[0], &weight_ED = saved[1], &grad_TE = grads[0];
    at::Tensor grad_x_TD, grad_weight_ED;
    if (in_halves(x_TD)) {
      const Halves grad(grad_TE), weight(weight_ED);
      if (ctx->needs_input_grad(0))
        grad_x_TD = at::mm(at::cat({grad.high, grad.low, grad.high}, 1),
                           at::cat({weight.high, weight.high, weight.low}));
      if (ctx->needs_input_grad(1))
        grad_weight_ED = sum_of_halves(at::mm(at::cat({grad.high, grad.low}, 1).t(), x_TD, at::kFloat), 0);
    } else {
      if (ctx->needs_input_grad(0)) grad_x_TD = at::mm(grad_TE, weight_ED).to(x_TD.scalar_type());
      if (ctx->needs_input_grad(1)) grad_weight_ED = at::mm(grad_TE.t(), x_TD.to(at::kFloat));
    }
    return {grad_x_TD, grad_weight_ED};
  }

 private:
  static bool in_halves(const at::Tensor& x_TD) {
    // Rows of whole 16 bytes, as the matrix units want them.
    return x_TD.is_cuda() && x_TD.scalar_type() == at::kBFloat16 && x_TD.size(1) % 8 == 0;
  }
  static at::Tensor sum_of_halves(const at::Tensor& both, int64_t dim) {
    const std::vector<at::Tensor> parts = both.chunk(2, dim);
    return parts[0] + parts[1];
  }
};

ops::RouteOptions route_options(const config::MoeConfig& config, int64_t num_tokens, bool may_drop) {
  ops::RouteOptions options;
  options.top_k = config.top_k;
  options.score = config.score == "sigmoid" ? kernels::Score::sigmoid : kernels::Score::softmax;
  options.softmax_after_topk = config.softmax_order == "after_topk";
  options.normalize = config.normalize_weights;
  options.scale = config.weight_scale;
  if (config.top_groups < config.groups) {
    options.num_groups = config.groups;
    options.top_groups = config.top_groups;
    options.group_top2 = config.group_score == "top2_sum";
  }
  if (may_drop && config.capacity_factor > 0) {
    const double mean_load =
        static_cast<double>(num_tokens * config.top_k) / static_cast<double>(config.experts);
    options.capacity = static_cast<int64_t>(std::ceil(config.capacity_factor * mean_load));
  }
  return options;
}

}  // namespace

at::Tensor router_logits(const at::Tensor& x_TD, const at::Tensor& weight_ED) {
  MOEBIUS_CHECK(weight_ED.scalar_type() == at::kFloat, "router weight is ", weight_ED.scalar_type());
  if (x_TD.is_cpu()) return ops::linear(x_TD.to(at::kFloat), weight_ED);
  return RouterLogits::apply(x_TD, weight_ED);
}

Router::Router(const config::ModelConfig& config, const std::string& prefix, nn::ParamTable& params)
    : config_(config.moe),
      weight_(params.declare({.name = prefix + "router",
                              .dims = {config.moe.experts, config.dim},
                              .klass = nn::ParamClass::router,
                              .init = nn::Init::normal(config.init_std),
                              .is_fp32 = true})) {
  if (config.moe.router_bias)
    logit_bias_ = &params.declare({.name = prefix + "router_logit_bias",
                                   .dims = {config.moe.experts},
                                   .klass = nn::ParamClass::router,
                                   .init = nn::Init::zeros(),
                                   .decays = false,
                                   .is_fp32 = true});
  if (config.moe.has_selection_bias())
    bias_ = &params.declare({.name = prefix + "router_bias",
                             .dims = {config.moe.experts},
                             .klass = nn::ParamClass::router,
                             .init = nn::Init::zeros(),
                             .decays = false,
                             .is_fp32 = true,
                             .is_buffer = true});
}

ops::Routing Router::route(const at::Tensor& x_TD, const at::Tensor& sequence_of_T, int64_t num_sequences,
                           bool may_drop, at::Tensor* logits_out_TE, const nn::TensorAxis* axis) const {
  const bool per_sequence = is_per_sequence(sequence_of_T);
  at::Tensor logits_TE = router_logits(x_TD, nn::of_lines(axis, weight_.value));
  if (logit_bias_ != nullptr) logits_TE = logits_TE + nn::of_lines(axis, logit_bias_->value);
  if (logits_out_TE != nullptr) *logits_out_TE = logits_TE;
  return ops::route(logits_TE, nn::value_of(bias_), per_sequence ? sequence_of_T : at::Tensor(),
                    per_sequence ? num_sequences : 1, route_options(config_, x_TD.size(0), may_drop));
}

}  // namespace moebius::moe
