#include "nn/recompute.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "base/check.h"

namespace moebius::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

thread_local bool is_second_run = false;

struct SecondRun {
  SecondRun() { is_second_run = true; }
  ~SecondRun() { is_second_run = false; }
};

// Lets a node of the graph own the segment.
struct SegmentHolder final : torch::CustomClassHolder {
  explicit SegmentHolder(Segment s) : segment(std::move(s)) {}
  Segment segment;
};

class Recompute : public Function<Recompute> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs,
                               const c10::intrusive_ptr<SegmentHolder>& holder) {
    const variable_list kept(inputs.begin(), inputs.end());
    ctx->save_for_backward(kept);
    ctx->saved_data["segment"] = at::IValue::make_capsule(holder);
    ctx->set_materialize_grads(false);
    const at::AutoGradMode no_grad(false);
    return holder->segment(kept);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto holder =
        c10::static_intrusive_pointer_cast<SegmentHolder>(ctx->saved_data["segment"].toCapsule());
    variable_list inputs;
    for (const at::Tensor& saved : ctx->get_saved_variables()) {
      at::Tensor input = saved.detach();
      input.set_requires_grad(saved.requires_grad());
      inputs.push_back(input);
    }
    variable_list outputs;
    {
      const at::AutoGradMode grad(true);
      const SecondRun second_run;
      outputs = holder->segment(inputs);
    }
    MOEBIUS_CHECK_EQ(outputs.size(), grads.size());
    variable_list roots, root_grads;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_grads.push_back(grads[i]);
    }
    if (!roots.empty()) torch::autograd::backward(roots, root_grads);
    variable_list result;
    for (const at::Tensor& input : inputs) result.push_back(input.grad());
    result.emplace_back();  // of the segment
    return result;
  }
};

}  // namespace

bool recomputing() {
  return is_second_run;
}

std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, Segment segment) {
  if (!at::GradMode::is_enabled()) return segment(inputs);
  return Recompute::apply(at::TensorList(inputs), c10::make_intrusive<SegmentHolder>(std::move(segment)));
}

}  // namespace moebius::nn
