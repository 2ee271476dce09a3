// Integer formats on tensors: symmetric codes with one scale per output channel (row), per token (row) or per
// tensor. What a code means, and how it is rounded, is defined in kernels/api/int8_format.h; the integer
// kernels, the tools and the fake quantisation of training all compute exactly that. No autograd here.
// Formats as in Wu et al. 2020, "Integer Quantization for Deep Learning Inference"; per-token activations as
// in Yao et al. 2022, "ZeroQuant".
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/api/int8_format.h"

namespace moebius::quant {

enum class Granularity : uint8_t {
  per_row,     // one scale for each index of all dims but the last: output channels of a weight, tokens of x
  per_tensor,  // one scale
};

// Codes of a tensor and their scales. Scales have the codes' dims with the last one replaced by 1
// (Granularity::per_row), or no dims (per_tensor), so that codes * scales are the values.
struct Quantised {
  at::Tensor codes;   // int8
  at::Tensor scales;  // fp32
};

// Largest magnitudes, fp32: per row (..., 1) or of the tensor (). Not finite where a value is not. x: fp32 or
// bf16; a tensor without elements has the range 0.
at::Tensor range_of(const at::Tensor& x, Granularity granularity);

// kernels::scale_of_range of every element, fp32 in and out: 0 for a range of 0, NaN for one not finite.
at::Tensor scales_of(const at::Tensor& ranges, int bits = 8);

// The codes of x (fp32 or bf16) under scales that broadcast to it; int8. Values outside the range are clipped
// to +-levels, NaN and everything under a scale of 0 or NaN gets the code 0. 2 <= bits <= 8.
at::Tensor codes_of(const at::Tensor& x, const at::Tensor& scales, int bits = 8);

// scales_of(range_of(x)) and the codes under them: nothing is clipped.
Quantised quantise(const at::Tensor& x, Granularity granularity, int bits = 8);

// codes * scales, in fp32 or rounded once to `dtype`.
at::Tensor dequantise(const at::Tensor& codes, const at::Tensor& scales, at::ScalarType dtype = at::kFloat);

// dequantise(codes_of(x, scales)) in x's dtype, without codes in between: the value that integer arithmetic
// sees in place of x. Equal to it bit for bit, but that NaN scales give NaN.
at::Tensor rounded_to_codes(const at::Tensor& x, const at::Tensor& scales, int bits = 8);

}  // namespace moebius::quant
