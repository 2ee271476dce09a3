#include "quant/fake_quant.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "base/check.h"
#include "quant/format.h"

namespace moebius::quant {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// The largest value of a group has |q| = limit up to the rounding of the step: it is not clipped.
constexpr double kEdge = 1 + 0x1p-20;

at::Tensor in_steps(const at::Tensor& x, const at::Tensor& step) {
  const at::Tensor inverse = step.reciprocal();
  return x.to(at::kFloat) * at::where(step.ge(kernels::kSmallestScale), inverse, at::zeros_like(inverse));
}

// A sum over what `like` was broadcast along, rows first: independent of the number of threads.
at::Tensor summed(const at::Tensor& values, const at::Tensor& like) {
  return values.sum(-1, true).sum_to_size(like.sizes());
}

struct Needs {
  bool mask;    // for the gradient of x
  bool offset;  // for that of the step
};

class FakeQuantise : public torch::autograd::Function<FakeQuantise> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& step,
                          const std::optional<at::Tensor>& carried, const FakeQuantOptions& options,
                          Needs needs) {
    const at::Tensor values = carried ? x.to(at::kFloat) + *carried : x;
    const double limit = kernels::levels_of_bits(options.bits);
    ctx->save_for_backward({step});
    ctx->saved_data["factor"] = options.step_gradient_scale;
    if (!options.noise && !needs.mask && !needs.offset)
      return rounded_to_codes(values, step, options.bits).to(x.scalar_type());

    const at::Tensor q = in_steps(values, step), inside = q.abs().le(limit * kEdge);
    at::Tensor on_grid = q.nan_to_num(0.0, limit, -limit).clamp_(-limit, limit).round_();
    if (options.noise) {
      const NoisePlan& plan = *options.noise;
      const Noise noise = draw_noise(plan.key, plan.kind, plan.share, x.sizes(), x.device());
      const at::Tensor taken = noise.taken.defined() ? noise.taken.logical_and(inside) : inside;
      on_grid = at::where(taken, q + noise.values, on_grid);
    }
    ctx->save_for_backward({step, needs.mask ? inside : at::Tensor(),
                            needs.offset ? at::where(inside, on_grid - q, on_grid) : at::Tensor()});
    return on_grid.mul(step).to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& grad = grads[0];
    at::Tensor grad_x, grad_step;
    if (ctx->needs_input_grad(0)) grad_x = saved.size() > 1 && saved[1].defined() ? grad * saved[1] : grad;
    if (saved.size() > 2 && saved[2].defined())
      grad_step = summed(grad.to(at::kFloat) * saved[2], saved[0]) * ctx->saved_data["factor"].toDouble();
    return {grad_x, grad_step, {}, {}, {}};
  }
};

}  // namespace

at::Tensor fake_quantise(const at::Tensor& x, const at::Tensor& step, const FakeQuantOptions& options,
                         const at::Tensor& carried) {
  MOEBIUS_CHECK(step.scalar_type() == at::kFloat, "steps are ", step.scalar_type());
  const bool grad = at::GradMode::is_enabled();
  const Needs needs{grad && options.clips && x.requires_grad(), grad && step.requires_grad()};
  return FakeQuantise::apply(x, step, carried.defined() ? std::optional(carried) : std::nullopt, options,
                             needs);
}

double lsq_gradient_scale(int64_t num_values, int bits) {
  return 1 / std::sqrt(static_cast<double>(num_values) * kernels::levels_of_bits(bits));
}

}  // namespace moebius::quant
