#include "ops/weight_gradients.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

namespace moebius::ops {
namespace {

thread_local WeightGradients* collecting = nullptr;

}  // namespace

WeightGradients::Collect::Collect(WeightGradients* later) : before_(std::exchange(collecting, later)) {}

WeightGradients::Collect::~Collect() {
  collecting = before_;
}

WeightGradients* WeightGradients::current() {
  return collecting;
}

WeightGradients* WeightGradients::current_for(const at::Tensor& weight) {
  return collecting != nullptr && weight.requires_grad() && weight.is_leaf() ? collecting : nullptr;
}

void WeightGradients::add(const at::Tensor& weight, std::function<at::Tensor()> make) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& each) { return each.weight.is_same(weight); });
  if (found != entries_.end()) {
    found->makes.push_back(std::move(make));
    return;
  }
  entries_.push_back({weight, {}});
  entries_.back().makes.push_back(std::move(make));
}

bool WeightGradients::has(const at::Tensor& weight) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& each) { return each.weight.is_same(weight); });
}

void WeightGradients::finish() {
  const at::NoGradGuard no_grad;
  for (Entry& entry : entries_) {
    at::Tensor& grad = entry.weight.mutable_grad();
    for (std::function<at::Tensor()>& make : entry.makes) {
      const at::Tensor part = std::exchange(make, {})();
      if (grad.defined()) {
        grad.add_(part);
      } else {
        grad = part;
      }
    }
    if (const auto& hook = torch::autograd::impl::post_acc_grad_hooks(entry.weight)) (*hook)(entry.weight);
  }
  entries_.clear();
}

}  // namespace moebius::ops
