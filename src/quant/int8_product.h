// A weight that is held in int8 alone and multiplied by the integer kernels: for evaluation and generation.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/int8_linear.h"
#include "quant/product.h"

namespace moebius::quant {

// How weights and activations of a quantised model are held.
enum class Scheme : uint8_t {
  int8_w8a8,   // weights int8 per output channel, activations int8 per token, ranges as they come
  int8_w8a16,  // the same weights, activations of 16 bits per token (ops::Int8Activations::two_digits)
  int4_w4a16,  // weights int4 with a scale per group of inputs, activations of 16 bits (quant/int4_product.h)
};

const char* name_of(Scheme scheme);
std::optional<Scheme> scheme_of(const std::string& name);
std::vector<std::string> scheme_names();

// What a weight is for; experts' gate_up may be packed so that their activation is part of the product.
enum class WeightUse : uint8_t { linear, experts, activated_experts };

class Int8Product final : public Product {
 public:
  // codes (N, K), or (E, N, K) of experts; scales one per row, or one. `dtype`: of the model.
  Int8Product(const at::Tensor& codes, const at::Tensor& scales, Scheme scheme, WeightUse use,
              at::ScalarType dtype);

  // No autograd.
  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const override;
  at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                        bool recompute) const override;
  at::Tensor values(const at::Tensor& weight) const override;

  int64_t num_bytes() const override;

 private:
  ops::Int8Weight weight_;
  ops::Int8Activations activations_;
  at::ScalarType dtype_;
};

}  // namespace moebius::quant
