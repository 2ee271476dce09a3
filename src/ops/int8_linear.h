// Products of activations with int8 weights in integer arithmetic (kernels/api/int8_gemm.h), and the routed
// experts' feed-forward made of them. No autograd. Shapes: T tokens, R rows (T*K), N outputs, K inputs,
// D model width, F expert width, E experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "ops/route.h"

namespace moebius::ops {

// Whether the kernels of this device compute integer products: a CPU, and a Hopper GPU.
bool has_int8_products(at::Device device);

// A weight as the kernel of its device reads it: 1 byte per element, and 8 bytes per output (4 on a GPU).
struct Int8Weight {
  at::Tensor packed;   // int8, flat
  at::Tensor scales;   // fp32, flat, in the order of the packed columns
  at::Tensor offsets;  // int32, likewise; undefined where the device's layout has none
  int64_t num_groups = 1, n = 0, k = 0;
  bool gate_up = false;  // packed so that SwiGLU can be applied to what the product holds
};

// codes (N, K) or (E, N, K) int8; scales one per row ((N, 1), (E, N, 1) or without the last dim) or one. With
// `gate_up`, rows 2f and 2f + 1 are gate and up of unit f, and products return the activation. On the
// device of `codes`.
Int8Weight pack_int8(const at::Tensor& codes, const at::Tensor& scales, bool gate_up = false);

// The weight in floats again: codes times scales, (N, K) or (E, N, K) for more than one group.
at::Tensor unpack_int8(const Int8Weight& weight, at::ScalarType dtype);

// How activations are rounded.
enum class Int8Activations : uint8_t {
  one_digit,   // 8 bits per value, one scale per row
  two_digits,  // 16 bits per value: loses less than bf16
};

// y = x weight^T + bias, in x's dtype; leading dims of x are kept. bias (N) of x's dtype, or undefined.
// static_scale: 0, or one scale for all rows (with one digit).
at::Tensor int8_linear(const at::Tensor& x, const Int8Weight& weight, const at::Tensor& bias_N,
                       Int8Activations activations = Int8Activations::one_digit, double static_scale = 0);

// R rows sorted by group, row r from row index[r] / divisor of x (index undefined: row r), times one weight
// matrix per group: (R, N), or (R, N / 2) with gate_up. Each row of x is quantised once. bias_GN: fp32 or
// undefined. Rows past the last offset hold anything. Result in `dtype`.
at::Tensor int8_grouped_mm(const at::Tensor& x, const at::Tensor& index_R, int64_t divisor,
                           const Int8Weight& weight, const at::Tensor& bias_GN, const at::Tensor& offsets_G1,
                           at::ScalarType dtype, Int8Activations activations);

// ops::expert_ffn with int8 weights; gate_up packed as such. The activation is quantised row by row.
at::Tensor int8_expert_ffn(const at::Tensor& x_TD, const Int8Weight& gate_up, const Int8Weight& down,
                           const Routing& routing, Int8Activations activations);

}  // namespace moebius::ops
