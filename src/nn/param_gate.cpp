#include "nn/param_gate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace moebius::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// One side of a block; owned by a node of the graph.
struct GateSide final : torch::CustomClassHolder {
  GateSide(ParamGate& g, int64_t b, bool ahead) : gate(g), block(b), is_ahead(ahead) {}
  ParamGate& gate;
  int64_t block;
  bool is_ahead;
};

class TellGate : public Function<TellGate> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList values,
                               const c10::intrusive_ptr<GateSide>& side) {
    ctx->saved_data["side"] = at::IValue::make_capsule(side);
    ctx->set_materialize_grads(false);
    return {values.begin(), values.end()};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto side = c10::static_intrusive_pointer_cast<GateSide>(ctx->saved_data["side"].toCapsule());
    if (side->is_ahead) {
      side->gate.after(side->block, Pass::backward);
    } else {
      side->gate.before(side->block, Pass::backward);
    }
    variable_list result = grads;
    result.emplace_back();  // of the side
    return result;
  }
};

std::vector<at::Tensor> pass_by(ParamGate& gate, int64_t block, bool is_ahead,
                                std::vector<at::Tensor> tensors) {
  if (!at::GradMode::is_enabled()) return tensors;
  variable_list passing;
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined() && tensor.requires_grad()) passing.push_back(tensor);
  if (passing.empty()) return tensors;
  const variable_list passed =
      TellGate::apply(at::TensorList(passing), c10::make_intrusive<GateSide>(gate, block, is_ahead));
  auto next = passed.begin();
  for (at::Tensor& tensor : tensors)
    if (tensor.defined() && tensor.requires_grad()) tensor = *next++;
  return tensors;
}

}  // namespace

std::vector<at::Tensor> ahead_of_block(ParamGate& gate, int64_t block, std::vector<at::Tensor> inputs) {
  return pass_by(gate, block, true, std::move(inputs));
}

std::vector<at::Tensor> behind_block(ParamGate& gate, int64_t block, std::vector<at::Tensor> outputs) {
  return pass_by(gate, block, false, std::move(outputs));
}

}  // namespace moebius::nn
