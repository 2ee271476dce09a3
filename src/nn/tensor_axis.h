// What layers ask of the processes that hold slices of one layer together (tensor parallelism). The interface
// lives here with its callers, who know no collectives; parallel/tensor_axis.h implements it. A layer that
// has no axis (null) is whole.
//
// Products come in pairs (Shoeybi et al. 2019, "Megatron-LM"): the first is split by rows of its weight and
// gives each rank its heads or hidden units, the second by columns and gives each rank one summand of the
// output. Between the pairs all ranks hold the same tokens, or each its share of them (sequence parallelism:
// Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"); what lies
// between enter() and leave() is called a region and sees all tokens. In a region values that every rank
// computes alike exist beside values that are the rank's own; the gradient of the former is a summand on each
// rank as soon as the latter depend on them. Each function says what it does to gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/param_slice.h"

namespace moebius::nn {

class Discards;

class TensorAxis {
 public:
  virtual ~TensorAxis() = default;

  virtual AxisPlace place() const = 0;
  // Rows that this process holds between regions, of num_tokens tokens.
  virtual int64_t rows_between(int64_t num_tokens) const = 0;

  // Into a region of num_tokens tokens: x of all of them. Its gradients are summed over the ranks.
  virtual at::Tensor enter(const at::Tensor& x_TD, int64_t num_tokens) const = 0;
  // Out of it: the sum over the ranks of y, as the next layers hold their tokens.
  virtual at::Tensor leave(const at::Tensor& y_TD) const = 0;

  // x, for uses whose gradient every rank computes in full: each hands on its share of it, and the sum of
  // enter() is the gradient again.
  virtual at::Tensor alike(const at::Tensor& x) const = 0;
  // x that all ranks have alike, for uses of the rank's own: the gradient is summed over the ranks.
  virtual at::Tensor shared(const at::Tensor& x) const = 0;
  // A parameter that is held whole and used outside regions: shared() where ranks hold different tokens
  // there, else as it is.
  virtual at::Tensor outside(const at::Tensor& param) const = 0;

  // The values of all ranks, (ranks, ...) in their order; without autograd.
  virtual at::Tensor gather(const at::Tensor& x) const = 0;
};

// The same without an axis: nothing happens. `discards`, where given, gets what the exchange makes again; x
// must be kept, or have been added before.
at::Tensor enter(const TensorAxis* axis, const at::Tensor& x_TD, int64_t num_tokens,
                 Discards* discards = nullptr);
inline at::Tensor leave(const TensorAxis* axis, const at::Tensor& y_TD) {
  return axis != nullptr ? axis->leave(y_TD) : y_TD;
}
inline at::Tensor alike(const TensorAxis* axis, const at::Tensor& x) {
  return axis != nullptr ? axis->alike(x) : x;
}
inline at::Tensor shared(const TensorAxis* axis, const at::Tensor& x) {
  return axis != nullptr && x.defined() ? axis->shared(x) : x;
}
inline at::Tensor outside(const TensorAxis* axis, const at::Tensor& param) {
  return axis != nullptr && param.defined() ? axis->outside(param) : param;
}
inline AxisPlace place_of(const TensorAxis* axis) {
  return axis != nullptr ? axis->place() : AxisPlace{};
}

}  // namespace moebius::nn
