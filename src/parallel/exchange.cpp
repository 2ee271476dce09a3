#include "parallel/exchange.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Lets a node of the graph own what its backward does.
struct MapHolder final : torch::CustomClassHolder {
  explicit MapHolder(Map m) : map(std::move(m)) {}
  Map map;
};

class Exchange : public torch::autograd::Function<Exchange> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Map& forward,
                            const c10::intrusive_ptr<MapHolder>& backward) {
    ctx->saved_data["backward"] = at::IValue::make_capsule(backward);
    return forward(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto holder =
        c10::static_intrusive_pointer_cast<MapHolder>(ctx->saved_data["backward"].toCapsule());
    return {holder->map(grads[0]), {}, {}};
  }
};

}  // namespace

at::Tensor exchange(const at::Tensor& x, const Map& forward, Map backward) {
  if (!at::GradMode::is_enabled() || !x.requires_grad()) return forward(x.detach());
  return Exchange::apply(x, forward, c10::make_intrusive<MapHolder>(std::move(backward)));
}

}  // namespace moebius::parallel
