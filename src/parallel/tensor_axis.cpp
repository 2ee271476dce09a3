// Shapes: T tokens, n ranks, c = ceil(T / n) tokens of a rank, D model width.
#include "parallel/tensor_axis.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Map = std::function<at::Tensor(const at::Tensor&)>;

// Lets a node of the graph own what its backward does.
struct MapHolder final : torch::CustomClassHolder {
  explicit MapHolder(Map m) : map(std::move(m)) {}
  Map map;
};

// forward(x), with the gradient backward(grad).
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

at::Tensor exchange(const at::Tensor& x, const Map& forward, Map backward) {
  if (!at::GradMode::is_enabled() || !x.requires_grad()) return forward(x.detach());
  return Exchange::apply(x, forward, c10::make_intrusive<MapHolder>(std::move(backward)));
}

at::Tensor identity(const at::Tensor& x) {
  return x;
}

class OneDimAxis : public nn::TensorAxis {
 public:
  explicit OneDimAxis(Communicator& axis) : axis_(axis) {}

  nn::AxisPlace place() const override { return {axis_.size(), axis_.rank()}; }

  at::Tensor enter(const at::Tensor& x_TD, int64_t num_tokens) const override {
    MOEBIUS_CHECK_EQ(x_TD.size(0), num_tokens);
    return shared(x_TD);
  }
  at::Tensor leave(const at::Tensor& y_TD) const override {
    return exchange(
        y_TD, [this](const at::Tensor& y) { return sum(y); }, identity);
  }
  at::Tensor alike(const at::Tensor& x) const override {
    const double share = 1.0 / axis_.size();
    return exchange(x, identity, [share](const at::Tensor& grad) { return grad * share; });
  }
  at::Tensor shared(const at::Tensor& x) const override {
    return exchange(x, identity, [this](const at::Tensor& grad) { return sum(grad); });
  }
  at::Tensor outside(const at::Tensor& param) const override { return param; }
  int64_t rows_between(int64_t num_tokens) const override { return num_tokens; }

  at::Tensor gather(const at::Tensor& x) const override {
    const at::NoGradGuard no_grad;
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.insert(sizes.begin(), axis_.size());
    const at::Tensor all = at::empty(sizes, x.options());
    axis_.all_gather(all, x.detach().contiguous()).wait();
    return all;
  }

 protected:
  // x belongs to others too, who may read it later.
  at::Tensor sum(const at::Tensor& x) const {
    const at::NoGradGuard no_grad;
    const at::Tensor result = x.detach().clone(at::MemoryFormat::Contiguous);
    axis_.all_reduce(result).wait();
    return result;
  }

  Communicator& axis_;
};

class SequenceAxis final : public OneDimAxis {
 public:
  using OneDimAxis::OneDimAxis;

  at::Tensor enter(const at::Tensor& x_cD, int64_t num_tokens) const override {
    MOEBIUS_CHECK_EQ(x_cD.size(0), tokens_of_rank(num_tokens));
    return exchange(
        x_cD, [this, num_tokens](const at::Tensor& x) { return gathered(x, num_tokens); },
        [this](const at::Tensor& grad) { return scattered_sum(grad); });
  }
  at::Tensor leave(const at::Tensor& y_TD) const override {
    return exchange(
        y_TD, [this](const at::Tensor& y) { return scattered_sum(y); },
        [this, num_tokens = y_TD.size(0)](const at::Tensor& grad) { return gathered(grad, num_tokens); });
  }
  at::Tensor outside(const at::Tensor& param) const override { return shared(param); }
  int64_t rows_between(int64_t num_tokens) const override { return tokens_of_rank(num_tokens); }

 private:
  int64_t tokens_of_rank(int64_t num_tokens) const { return (num_tokens + axis_.size() - 1) / axis_.size(); }

  at::Tensor gathered(const at::Tensor& x_cD, int64_t num_tokens) const {
    return gather(x_cD).flatten(0, 1).narrow(0, 0, num_tokens);
  }
  at::Tensor scattered_sum(const at::Tensor& y_TD) const {
    const at::NoGradGuard no_grad;
    const int64_t own = tokens_of_rank(y_TD.size(0)), all = own * axis_.size();
    at::Tensor y = y_TD.detach().contiguous();
    if (all > y.size(0)) {
      const at::Tensor padded = at::empty({all, y.size(1)}, y.options());
      padded.narrow(0, 0, y.size(0)).copy_(y);
      padded.narrow(0, y.size(0), all - y.size(0)).zero_();
      y = padded;
    }
    const at::Tensor part = at::empty({own, y.size(1)}, y.options());
    axis_.reduce_scatter(part, y).wait();
    return part;
  }
};

}  // namespace

std::shared_ptr<const nn::TensorAxis> make_tensor_axis(Communicator& axis, bool sequence) {
  if (sequence) return std::make_shared<SequenceAxis>(axis);
  return std::make_shared<OneDimAxis>(axis);
}

void check_tensor_split(const config::ModelConfig& model, int64_t ranks) {
  const auto must_divide = [ranks](const char* field, int64_t value) {
    if (value % ranks != 0)
      throw_user_error("parallel.tp is ", ranks, ", which does not divide ", field, " = ", value,
                       "; choose a tp that does, or change ", field);
  };
  if (ranks == 1) return;
  must_divide("model.heads", model.heads);
  if (!model.is_latent()) must_divide("model.kv_heads", model.kv_heads);
  const bool routed = model.moe.experts > 0;
  if (!routed || !model.moe.dense_layers.empty()) must_divide("model.ffn_dim", model.ffn_dim);
  if (routed) must_divide("model.moe.expert_dim", model.moe.expert_dim);
  if (routed && model.moe.shared_experts > 0)
    must_divide("the shared experts' width", model.moe.shared_width());
  if (model.vocab > 0 && model.vocab < ranks)
    throw_user_error("parallel.tp is ", ranks, ", but the vocabulary has ", model.vocab,
                     " tokens: a rank would hold none; lower parallel.tp");
  if (model.qk_norm == "full")
    throw_user_error(
        "parallel.tp is ", ranks,
        ", but model.qk_norm = 'full' takes one norm over all heads, which tensor parallelism splits; "
        "use parallel.tp = 1 with this model");
}

}  // namespace moebius::parallel
