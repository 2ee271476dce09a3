// Shapes: T tokens, n ranks, c = ceil(T / n) tokens of a rank, D model width.
#include "parallel/tensor_axis.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "base/check.h"
#include "base/error.h"
#include "parallel/exchange.h"

namespace moebius::parallel {
namespace {

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
        y_TD, [this](const at::Tensor& y) { return sum_over(axis_, y); }, identity);
  }
  at::Tensor alike(const at::Tensor& x) const override { return with_share_of_gradient(axis_, x); }
  at::Tensor shared(const at::Tensor& x) const override { return with_sum_of_gradients(axis_, x); }
  at::Tensor outside(const at::Tensor& param) const override { return param; }
  int64_t rows_between(int64_t num_tokens) const override { return num_tokens; }

  at::Tensor gather(const at::Tensor& x) const override { return gather_over(axis_, x); }

 protected:
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

namespace {

void check_vocabulary(const config::ModelConfig& model, int64_t tp, int64_t parts) {
  if (model.vocab > 0 && model.vocab < parts)
    throw_user_error("parallel.tp is ", tp, ", but the vocabulary has ", model.vocab,
                     " tokens: a rank would hold none; lower parallel.tp");
}

void check_query_norm(const config::ModelConfig& model, int64_t tp) {
  if (model.qk_norm == "full")
    throw_user_error(
        "parallel.tp is ", tp,
        ", but model.qk_norm = 'full' takes one norm over all heads, which tensor parallelism splits; "
        "use parallel.tp = 1 with this model");
}

bool has_dense_layers(const config::ModelConfig& model) {
  return model.moe.experts == 0 || !model.moe.dense_layers.empty();
}

}  // namespace

void check_tensor_split(const config::ModelConfig& model, int64_t ranks) {
  const auto must_divide = [ranks](const char* field, int64_t value) {
    if (value % ranks != 0)
      throw_user_error("parallel.tp is ", ranks, ", which does not divide ", field, " = ", value,
                       "; choose a tp that does, or change ", field);
  };
  if (ranks == 1) return;
  must_divide("model.heads", model.heads);
  if (!model.is_latent()) must_divide("model.kv_heads", model.kv_heads);
  if (has_dense_layers(model)) must_divide("model.ffn_dim", model.ffn_dim);
  if (model.moe.experts > 0) must_divide("model.moe.expert_dim", model.moe.expert_dim);
  if (model.moe.experts > 0 && model.moe.shared_experts > 0)
    must_divide("the shared experts' width", model.moe.shared_width());
  check_vocabulary(model, ranks, ranks);
  check_query_norm(model, ranks);
}

void check_grid_split(const config::ModelConfig& model, int64_t side) {
  if (side == 1) return;
  const int64_t ranks = side * side;
  const auto must_divide = [side, ranks](int64_t divisor, const char* field, int64_t value) {
    if (value % divisor != 0)
      throw_user_error("parallel.tp is ", ranks, " with parallel.tp_mode = '2d', a grid of ", side, " x ",
                       side, ", and ", divisor, " does not divide ", field, " = ", value, "; change ", field,
                       ", or use another tp");
  };
  const auto refuse = [](const char* field, const char* value, const char* what) {
    throw_user_error(field, " is ", value, ", but parallel.tp_mode = '2d' has no ", what,
                     " in blocks; use tp_mode = '1d' with this model");
  };
  if (model.is_latent()) refuse("model.attention", "'mla'", "latent attention");
  if (model.mtp.depth > 0) refuse("model.mtp.depth", "1", "multi-token prediction");
  check_query_norm(model, ranks);
  must_divide(side, "model.dim", model.dim);
  must_divide(ranks, "model.heads", model.heads);
  must_divide(ranks, "model.kv_heads", model.kv_heads);
  if (has_dense_layers(model)) must_divide(side, "model.ffn_dim", model.ffn_dim);
  if (model.moe.experts > 0) {
    must_divide(side, "model.moe.experts", model.moe.experts);
    must_divide(side, "model.moe.expert_dim", model.moe.expert_dim);
    if (model.moe.shared_experts > 0)
      must_divide(side, "the shared experts' width", model.moe.shared_width());
  }
  check_vocabulary(model, ranks, side);
}

}  // namespace moebius::parallel
