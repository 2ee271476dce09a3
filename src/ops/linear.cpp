// Shapes: R rows (all leading dims together), K width of the input, N width of the output.
#include "ops/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/device.h"
#include "ops/weight_gradients.h"

namespace moebius::ops {
namespace {

using kernels::GroupedGemmKind;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// One product of the CPU kernel with a single group of `num_rows` rows.
at::Tensor dense(GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b, int64_t num_rows, int64_t n,
                 int64_t k) {
  const int64_t out_rows = kind == GroupedGemmKind::weight_grad ? n : num_rows;
  at::Tensor out = at::empty({out_rows, kind == GroupedGemmKind::forward ? n : k}, a.options());
  kernels::GroupedGemmArgs args{};
  args.kind = kind;
  args.a = a.const_data_ptr();
  args.b = b.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.num_groups = 1;
  args.num_rows = num_rows;
  args.n = n;
  args.k = k;
  args.index_divisor = 1;
  args.dtype = args.out_dtype = kernel_dtype(a);
  kernel_table(a.device()).grouped_gemm(args, current_stream(a.device()));
  return out;
}

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x_RK, const at::Tensor& weight_NK) {
    ctx->save_for_backward({x_RK, weight_NK});
    if (WeightGradients* const later = WeightGradients::current_for(weight_NK))
      ctx->saved_data["later"] = reinterpret_cast<int64_t>(later);
    if (!x_RK.is_cpu()) return at::mm(x_RK, weight_NK.t());
    return dense(GroupedGemmKind::forward, x_RK, weight_NK, x_RK.size(0), weight_NK.size(0),
                 weight_NK.size(1));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x_RK = saved[0], &weight_NK = saved[1];
    const at::Tensor grad_RN = grads[0].contiguous();
    const int64_t num_rows = x_RK.size(0), n = weight_NK.size(0), k = weight_NK.size(1);
    at::Tensor grad_x_RK, grad_weight_NK;
    if (ctx->needs_input_grad(0))
      grad_x_RK = x_RK.is_cpu() ? dense(GroupedGemmKind::input_grad, grad_RN, weight_NK, num_rows, n, k)
                                : at::mm(grad_RN, weight_NK);
    if (ctx->needs_input_grad(1)) {
      const auto make = [grad_RN, x_RK, num_rows, n, k] {
        return x_RK.is_cpu() ? dense(GroupedGemmKind::weight_grad, grad_RN, x_RK, num_rows, n, k)
                             : at::mm(grad_RN.t(), x_RK);
      };
      if (const auto later = ctx->saved_data.find("later"); later != ctx->saved_data.end()) {
        reinterpret_cast<WeightGradients*>(later->second.toInt())->add(weight_NK, make);
      } else {
        grad_weight_NK = make();
      }
    }
    return {grad_x_RK, grad_weight_NK};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) {
  MOEBIUS_CHECK_EQ(weight_NK.dim(), 2);
  MOEBIUS_CHECK_EQ(x.size(-1), weight_NK.size(1));
  MOEBIUS_CHECK(x.scalar_type() == weight_NK.scalar_type());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight_NK.size(0);
  const at::Tensor x_RK = x.reshape({-1, weight_NK.size(1)}).contiguous();
  return Linear::apply(x_RK, weight_NK.contiguous()).view(sizes);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK, const at::Tensor& bias_N) {
  const at::Tensor product = ops::linear(x, weight_NK);
  return bias_N.defined() ? product + bias_N : product;
}

}  // namespace moebius::ops
