#include "nn/recompute.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "base/check.h"
#include "ops/weight_gradients.h"

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

class RunAgain : public Function<RunAgain> {
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

// Owns what finish() took until it is made again.
struct DiscardsHolder final : torch::CustomClassHolder {
  explicit DiscardsHolder(std::vector<Discards::Entry> e) : entries(std::move(e)) {}
  std::vector<Discards::Entry> entries;
};

// Moves the memory of `from` into the storage of `to`; an undefined `from` leaves it empty.
void give_memory(const at::Tensor& to, const at::Tensor& from) {
  c10::StorageImpl* target = to.storage().unsafeGetStorageImpl();
  if (!from.defined()) {
    target->set_data_ptr_noswap(c10::DataPtr(nullptr, to.device()));
    target->set_nbytes(0);
    return;
  }
  MOEBIUS_CHECK(from.sizes() == to.sizes() && from.strides() == to.strides() &&
                    from.scalar_type() == to.scalar_type() && from.storage_offset() == 0,
                "made ", from.sizes(), " ", from.scalar_type(), " again for ", to.sizes(), " ",
                to.scalar_type());
  c10::StorageImpl* source = from.storage().unsafeGetStorageImpl();
  target->set_nbytes(source->nbytes());
  target->set_data_ptr_noswap(source->set_data_ptr(c10::DataPtr(nullptr, from.device())));
  source->set_nbytes(0);
}

class Remake : public Function<Remake> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& output,
                            const c10::intrusive_ptr<DiscardsHolder>& holder) {
    ctx->saved_data["discards"] = at::IValue::make_capsule(holder);
    ctx->set_materialize_grads(false);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto holder =
        c10::static_intrusive_pointer_cast<DiscardsHolder>(ctx->saved_data["discards"].toCapsule());
    const at::AutoGradMode no_grad(false);
    for (const Discards::Entry& entry : holder->entries) give_memory(entry.tensor, entry.make());
    holder->entries.clear();  // a second walk of the graph finds them filled
    return {grads[0], {}};
  }
};

}  // namespace

void Discards::add(const at::Tensor& tensor, std::function<at::Tensor()> make) {
  MOEBIUS_CHECK(
      tensor.is_contiguous() && tensor.storage_offset() == 0 && tensor.storage().nbytes() == tensor.nbytes(),
      "only whole tensors can be discarded, not ", tensor.sizes(), " of ", tensor.storage().nbytes(),
      " bytes");
  entries_.push_back({tensor.detach(), std::move(make)});
}

at::Tensor Discards::finish(const at::Tensor& output) {
  if (entries_.empty() || !at::GradMode::is_enabled() || !output.requires_grad()) {
    entries_.clear();
    return output;
  }
  for (const Entry& entry : entries_) give_memory(entry.tensor, {});
  return Remake::apply(output, c10::make_intrusive<DiscardsHolder>(std::exchange(entries_, {})));
}

bool recomputing() {
  return is_second_run;
}

std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, Segment segment) {
  if (!at::GradMode::is_enabled()) return segment(inputs);
  // What is computed again belongs where it was computed first.
  if (ops::WeightGradients* const later = ops::WeightGradients::current(); later != nullptr)
    segment = [later, own = std::move(segment)](const std::vector<at::Tensor>& values) {
      const ops::WeightGradients::Collect collect(later);
      return own(values);
    };
  return RunAgain::apply(at::TensorList(inputs), c10::make_intrusive<SegmentHolder>(std::move(segment)));
}

}  // namespace moebius::nn
