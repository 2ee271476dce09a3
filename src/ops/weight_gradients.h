// Gradients of weights that are computed later than those of inputs, so that a pipeline can fill its gaps
// with them (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv 2401.10241).
//
//   WeightGradients later;
//   { const WeightGradients::Collect collect(later); loss = model.forward(…); }
//   loss.backward();   // gradients of inputs, and of what is no product with a weight
//   later.finish();    // those of the weights
//
// ops::linear and ops::expert_ffn take part where their weights are leaves of autograd; others, and what was
// computed outside the scope, have their gradients in the backward pass as ever.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace moebius::ops {

class WeightGradients {
 public:
  WeightGradients() = default;
  WeightGradients(const WeightGradients&) = delete;
  WeightGradients& operator=(const WeightGradients&) = delete;

  // Products that this thread makes while it lives are collected there (null: are not); it outlives their
  // graphs.
  class Collect {
   public:
    explicit Collect(WeightGradients* later);
    ~Collect();
    Collect(const Collect&) = delete;
    Collect& operator=(const Collect&) = delete;

   private:
    WeightGradients* before_;
  };
  // Of this thread; null outside of scopes.
  static WeightGradients* current();
  // The same for products with this weight: null where it is no leaf.
  static WeightGradients* current_for(const at::Tensor& weight);

  // In a backward pass: make() is called by finish() and returns what is to be added to the weight's
  // gradient.
  void add(const at::Tensor& weight, std::function<at::Tensor()> make);
  // Whether the weight has gradients to come.
  bool has(const at::Tensor& weight) const;

  // Adds all of them to the weights' gradients; hooks of a weight (PostAccumulateGradHook) are called once.
  void finish();

 private:
  struct Entry {
    at::Tensor weight;
    std::vector<std::function<at::Tensor()>> makes;
  };
  std::vector<Entry> entries_;  // in the order in which the backward pass came to them
};

}  // namespace moebius::ops
