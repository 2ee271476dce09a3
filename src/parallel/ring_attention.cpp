// Shapes: T tokens of this rank, N of another, C columns of the fused projection, W of its keys and values, H
// query heads.
#include "parallel/ring_attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "nn/multi_token.h"
#include "ops/attention_part.h"
#include "parallel/token_split.h"
#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The steps of a ring over one batch, seen from one rank.
struct RingPlan final : torch::CustomClassHolder {
  struct Step {
    ops::AttentionPieces pieces;
    int64_t num_keys = 0;  // rows of the rank whose keys they are
  };
  Communicator* axis = nullptr;
  ops::AttentionShape shape{};
  std::vector<Step> steps;  // of the keys of this rank, of the one before it, …

  int size() const { return axis->size(); }
  int next() const { return (axis->rank() + 1) % size(); }
  int previous() const { return (axis->rank() + size() - 1) % size(); }
};
using SharedPlan = c10::intrusive_ptr<RingPlan>;

// A transfer to the next rank and one from the rank before, as one exchange: were they a send and a receive,
// each rank would wait for the next one to open the connection between them.
class Shift {
 public:
  Shift() = default;
  Shift(const RingPlan& plan, const at::Tensor& out, int64_t rows)
      : arriving_(at::empty({rows, out.size(1)}, out.options())) {
    std::vector<int64_t> out_rows(static_cast<size_t>(plan.size())), in_rows = out_rows;
    out_rows[static_cast<size_t>(plan.previous())] = rows;
    in_rows[static_cast<size_t>(plan.next())] = out.size(0);
    pending_ = plan.axis->all_to_all(arriving_, out, std::move(out_rows), std::move(in_rows));
  }

  at::Tensor wait() {
    pending_.wait();
    return std::exchange(arriving_, {});
  }

 private:
  at::Tensor arriving_;
  Pending pending_;
};

class RingAttention : public torch::autograd::Function<RingAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv,
                            const std::optional<at::Tensor>& sinks, const SharedPlan& plan) {
    const telemetry::Span span("ring attention", "parallel");
    const ops::AttentionShape& shape = plan->shape;
    ops::AttentionSums sums = ops::begin_attention(qkv, shape, sinks.value_or(at::Tensor()));
    at::Tensor keys = ops::keys_and_values(qkv, shape);
    for (size_t j = 0; j < plan->steps.size(); ++j) {
      Shift shift;
      const bool goes_on = j + 1 < plan->steps.size();
      if (goes_on) shift = Shift(*plan, keys, plan->steps[j + 1].num_keys);
      ops::attend_to_part(qkv, keys, plan->steps[j].pieces, shape, sums);
      if (goes_on) keys = shift.wait();
    }
    const at::Tensor out = sums.out_TC.to(qkv.scalar_type());
    ctx->save_for_backward(
        {qkv, out, sums.lse_HT, sinks.value_or(at::Tensor()), sums.random_state, sums.unused});
    ctx->set_materialize_grads(false);
    ctx->saved_data["plan"] = at::IValue::make_capsule(plan);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(3);
    const telemetry::Span span("ring attention, backward", "parallel");
    const variable_list saved = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<RingPlan>(ctx->saved_data["plan"].toCapsule());
    const ops::AttentionShape& shape = plan->shape;
    const at::Tensor &qkv = saved[0], &out = saved[1], &sinks = saved[3];
    ops::AttentionSums sums;
    sums.lse_HT = saved[2];
    sums.random_state = saved[4];
    sums.unused = saved[5];
    const at::Tensor grad_out = grads[0].contiguous();
    const at::TensorOptions fp32 = qkv.options().dtype(at::kFloat).requires_grad(false);
    const int64_t query_width = shape.num_heads * shape.head_dim;
    const at::Tensor grad_q = at::zeros({qkv.size(0), query_width}, fp32);
    at::Tensor keys = ops::keys_and_values(qkv, shape), own;
    Shift gradients;  // of the keys of the next step, from the ranks that have seen them before
    for (size_t j = 0; j < plan->steps.size(); ++j) {
      Shift shift;
      const bool goes_on = j + 1 < plan->steps.size();
      if (goes_on) shift = Shift(*plan, keys, plan->steps[j + 1].num_keys);
      const at::Tensor grad_keys = at::zeros(keys.sizes(), fp32);
      ops::attend_to_part_backward(qkv, keys, plan->steps[j].pieces, shape, out, sums, grad_out, grad_q,
                                   grad_keys);
      if (j == 0) {
        own = grad_keys;
      } else {
        if (j > 1) grad_keys.add_(gradients.wait());
        // Behind the last step they are at the rank before their owner.
        const int64_t rows = plan->steps[goes_on ? j + 1 : 0].num_keys;
        gradients = Shift(*plan, grad_keys, rows);
      }
      if (goes_on) keys = shift.wait();
    }
    if (plan->steps.size() > 1) own.add_(gradients.wait());
    at::Tensor grad_qkv = at::empty_like(qkv);
    grad_qkv.narrow(1, 0, query_width).copy_(grad_q);
    grad_qkv.narrow(1, query_width, own.size(1)).copy_(own);
    at::Tensor grad_sinks;
    if (sinks.defined())
      grad_sinks = ops::sinks_gradient(sinks, out, sums.lse_HT, grad_out).to(sinks.scalar_type());
    return {grad_qkv, grad_sinks, {}};
  }
};

class RingAxis final : public nn::ContextAxis {
 public:
  explicit RingAxis(Communicator& axis) : axis_(axis) {}

  at::Tensor attention(const at::Tensor& qkv_TC, const ops::Segments& documents,
                       const ops::AttentionShape& given, const at::Tensor& sinks_H) const override {
    ops::AttentionShape shape = given;
    if (shape.window >= documents.max_length) shape.window = 0;  // hides nothing
    std::optional<at::Tensor> sinks;
    if (sinks_H.defined()) sinks = sinks_H;
    return RingAttention::apply(qkv_TC.contiguous(), sinks, plan_of(documents, shape, qkv_TC.size(0)));
  }

 private:
  // All layers of a pass have the same documents, and few shapes.
  SharedPlan plan_of(const ops::Segments& documents, const ops::AttentionShape& shape,
                     int64_t num_rows) const {
    auto plan = c10::make_intrusive<RingPlan>();
    plan->axis = &axis_;
    plan->shape = shape;
    plan->steps = steps_of(documents, shape.window);
    MOEBIUS_CHECK_EQ(num_rows, plan->steps.front().num_keys, "rows of rank ", axis_.rank());
    return plan;
  }

  std::vector<RingPlan::Step> steps_of(const ops::Segments& documents, int64_t window) const {
    const std::lock_guard lock(mutex_);
    if (documents.cu_seqlens == documents_ && documents.sequence_length == length_)
      for (const auto& [known, steps] : steps_)
        if (known == window) return steps;
    if (documents.cu_seqlens != documents_ || documents.sequence_length != length_) steps_.clear();
    documents_ = documents.cu_seqlens;
    length_ = documents.sequence_length;
    const int64_t num_tokens = documents.cu_seqlens.back();
    MOEBIUS_CHECK(length_ > 0 && num_tokens % length_ == 0, num_tokens, " tokens of sequences of ", length_);
    const TokenSplit split(length_, axis_.size());
    std::vector<RingPlan::Step> steps;
    for (int j = 0; j < axis_.size(); ++j) {
      const int from = (axis_.rank() + axis_.size() - j) % axis_.size();
      steps.push_back(
          {split.pieces(documents_, axis_.rank(), from, window), num_tokens / length_ * split.tokens(from)});
    }
    steps_.emplace_back(window, steps);
    return steps;
  }

  Communicator& axis_;
  mutable std::mutex mutex_;  // recomputed layers run in autograd's thread
  mutable std::vector<int32_t> documents_;
  mutable int64_t length_ = 0;
  mutable std::vector<std::pair<int64_t, std::vector<RingPlan::Step>>> steps_;  // by window
};

}  // namespace

std::shared_ptr<const nn::ContextAxis> make_context_axis(Communicator& axis) {
  return std::make_shared<RingAxis>(axis);
}

nn::TokenBatch part_of_batch(const nn::TokenBatch& whole, const nn::AxisPlace& place, bool with_mtp) {
  if (place.size == 1) return whole;
  const int64_t length = whole.documents.sequence_length;
  const TokenSplit split(length, place.size);
  const auto part = [&](const at::Tensor& x) {
    return x.defined() ? rows_of_rank(x, split, length, place.rank) : x;
  };
  nn::TokenBatch own = whole;
  own.tokens_T = part(whole.tokens_T);
  own.targets_T = part(whole.targets_T);
  own.positions_T = part(whole.positions_T);
  own.sequence_of_T = part(whole.sequence_of_T);
  if (!with_mtp) return own;
  const nn::MultiToken::Shifted next =
      nn::MultiToken::shift(whole.tokens_T, whole.targets_T, whole.positions_T);
  own.next_tokens_T = part(next.tokens_T);
  own.next_targets_T = part(next.targets_T);
  return own;
}

}  // namespace moebius::parallel
