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
//
// Ranks may also form a grid (in_blocks()): a line of it (place()) splits heads, hidden units, the vocabulary
// and, between regions, the model's width, and sees the same tokens; the lines (tokens()) hold different
// tokens everywhere, so that "all tokens" above are those of the line. What only a grid does has a default
// here, which is to do nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

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

  // Norm of the residual stream, as ops::add_rms_norm: {x + delta, its norm}, without delta {x, its norm}.
  // Outside regions; `weight` is a parameter.
  virtual std::pair<at::Tensor, at::Tensor> add_norm(const at::Tensor& x_TD, const at::Tensor& delta_TD,
                                                     const at::Tensor& weight_D, double eps) const;

  // --- Of a grid. ---

  // Which of the lines this process is on; one line: all ranks see all tokens.
  virtual AxisPlace tokens() const { return {}; }
  // Weights of pairs are held in blocks of both dims, and the products exchange what enter() and leave() do.
  virtual bool in_blocks() const { return false; }
  // The products of a pair, x (T, D) and y (T, D) as they lie between regions, h (T, N) this rank's columns.
  // weight_ND, weight_DN: this rank's blocks.
  virtual at::Tensor first_product(const at::Tensor& x_TD, const at::Tensor& weight_ND) const;
  virtual at::Tensor second_product(const at::Tensor& h_TN, const at::Tensor& weight_DN) const;
  // A parameter that lines use alike, each for its own tokens: the gradient is summed over them.
  virtual at::Tensor of_lines(const at::Tensor& param) const { return param; }
  // Sum over the lines of what each has of its tokens, for uses that are alike on all ranks.
  virtual at::Tensor sum_of_lines(const at::Tensor& x) const { return x; }
  // The rows of all lines one after the other; without autograd.
  virtual at::Tensor rows_of_lines(const at::Tensor& x, int64_t /*num_tokens*/) const { return x; }
  // x_TC, whose columns are parts of these widths: all tokens, and of each part this line's share of columns.
  virtual at::Tensor to_sequences(const at::Tensor& x_TC, const std::vector<int64_t>& /*parts*/,
                                  int64_t /*num_tokens*/) const {
    return x_TC;
  }
  // Back, for one part.
  virtual at::Tensor from_sequences(const at::Tensor& y_TC, int64_t /*num_tokens*/) const { return y_TC; }
  // Out of a lookup in this rank's block of a table with zeros for what other ranks have: y has all tokens.
  virtual at::Tensor leave_lookup(const at::Tensor& y_TD) const { return leave(y_TD); }
  // This rank's rows of a table in the model's whole width; the gradient goes to those who hold it.
  virtual at::Tensor whole_width(const at::Tensor& param_VD) const { return param_VD; }
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
inline AxisPlace tokens_of(const TensorAxis* axis) {
  return axis != nullptr ? axis->tokens() : AxisPlace{};
}
inline bool in_blocks(const TensorAxis* axis) {
  return axis != nullptr && axis->in_blocks();
}
inline at::Tensor of_lines(const TensorAxis* axis, const at::Tensor& param) {
  return axis != nullptr && param.defined() ? axis->of_lines(param) : param;
}
// Of values per token those of this line's tokens.
at::Tensor rows_of_line(const TensorAxis* axis, const at::Tensor& x_T);
// See TensorAxis::add_norm.
std::pair<at::Tensor, at::Tensor> add_norm(const TensorAxis* axis, const at::Tensor& x_TD,
                                           const at::Tensor& delta_TD, const at::Tensor& weight_D,
                                           double eps);

}  // namespace moebius::nn
