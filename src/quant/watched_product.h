// A plain float weight that notes what it is multiplied with: for the report of `moebius quantize
// --calibrate`.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>

#include "quant/product.h"

namespace moebius::quant {

// Of all rows that a weight was multiplied with.
struct InputStatistics {
  int64_t num_rows = 0, num_values = 0;
  double range = 0;         // largest magnitude
  double peak_ratio = 0;    // largest ratio of a row's range to its root mean square
  double square = 0;        // sum of squares
  double error_square = 0;  // of what rounding each row to 8 bits changes

  double relative_error() const;
};

class WatchedProduct final : public Product {
 public:
  explicit WatchedProduct(std::string name) : name_(std::move(name)) {}

  // As floats. UserError naming the weight when its input is not finite.
  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const override;
  // The rows that down is multiplied with are noted for SwiGLU experts without biases; others leave down's
  // statistics empty.
  at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                        bool recompute) const override;
  at::Tensor values(const at::Tensor& weight) const override { return weight; }

  const InputStatistics& statistics() const { return statistics_; }

 private:
  void note(const at::Tensor& x) const;

  std::string name_;
  mutable InputStatistics statistics_;
};

}  // namespace moebius::quant
