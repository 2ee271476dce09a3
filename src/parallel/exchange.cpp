#include "parallel/exchange.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>
#include <vector>

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

at::Tensor sum_over(Communicator& group, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  const at::Tensor sum = x.detach().clone(at::MemoryFormat::Contiguous);
  group.all_reduce(sum).wait();
  return sum;
}

at::Tensor gather_over(Communicator& group, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.insert(sizes.begin(), group.size());
  const at::Tensor all = at::empty(sizes, x.options().requires_grad(false));
  if (all.numel() > 0) group.all_gather(all, x.detach().contiguous()).wait();
  return all;
}

at::Tensor with_sum_of_gradients(Communicator& group, const at::Tensor& x) {
  return exchange(x, identity, [&group](const at::Tensor& grad) { return sum_over(group, grad); });
}

at::Tensor with_share_of_gradient(const Communicator& group, const at::Tensor& x) {
  const double share = 1.0 / group.size();
  return exchange(x, identity, [share](const at::Tensor& grad) { return grad.mul(share); });
}

}  // namespace moebius::parallel
