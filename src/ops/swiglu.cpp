#include "ops/swiglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

class Swiglu : public Function<Swiglu> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up) {
    std::vector<int64_t> sizes = gate_up.sizes().vec();
    sizes.back() /= 2;
    at::Tensor out = at::empty(sizes, gate_up.options());
    if (out.numel() > 0) {
      kernels::SwigluForwardArgs args{};
      args.gate_up = gate_up.const_data_ptr();
      args.out = out.mutable_data_ptr();
      args.width = sizes.back();
      args.num_rows = out.numel() / args.width;
      args.dtype = kernel_dtype(gate_up);
      kernel_table(gate_up.device()).swiglu_forward(args, current_stream(gate_up.device()));
    }
    ctx->save_for_backward({gate_up});
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}};
    const at::Tensor gate_up = ctx->get_saved_variables()[0];
    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad_gate_up = at::empty_like(gate_up);
    if (grad_out.numel() > 0) {
      kernels::SwigluBackwardArgs args{};
      args.gate_up = gate_up.const_data_ptr();
      args.grad_out = grad_out.const_data_ptr();
      args.grad_gate_up = grad_gate_up.mutable_data_ptr();
      args.width = grad_out.size(-1);
      args.num_rows = grad_out.numel() / args.width;
      args.dtype = kernel_dtype(gate_up);
      kernel_table(gate_up.device()).swiglu_backward(args, current_stream(gate_up.device()));
    }
    return {grad_gate_up};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate_up_R2F) {
  MOEBIUS_CHECK(gate_up_R2F.dim() >= 1 && gate_up_R2F.size(-1) % 2 == 0, "swiglu of ", gate_up_R2F.sizes());
  return Swiglu::apply(gate_up_R2F.contiguous());
}

}  // namespace moebius::ops
