// Products of activations with int4 weights that have a scale for each group of values along k
// (kernels/api/int4_gemm.h). No autograd. Shapes: T tokens, R rows (T*K), N outputs, K inputs, E experts, Q
// groups along K.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moebius::ops {

// Whether the kernels of this device compute with int4 weights.
bool has_int4_products(at::Device device);

// A weight in the order in which the kernel reads it: half a byte per element, and 6 bytes per group.
struct Int4Weight {
  at::Tensor packed;  // uint8, flat
  at::Tensor scales;  // fp32, flat, in the order of the packed columns
  at::Tensor sums;    // int16, likewise
  int64_t num_groups = 1, n = 0, k = 0, group = 0;
};

// codes (N, ceil(K / 2)) or (E, N, ceil(K / 2)) uint8, two in a byte: code + 8 of the even k in the low half;
// scales (N, Q) or (E, N, Q) fp32. `group`: a multiple of 64. CPU.
Int4Weight pack_int4(const at::Tensor& codes, const at::Tensor& scales, int64_t k, int64_t group);

// Codes of such a pair in floats: (N, K) or (E, N, K).
at::Tensor int4_values(const at::Tensor& codes, const at::Tensor& scales, int64_t k, int64_t group,
                       at::ScalarType dtype);
// The same of a packed weight; (N, K) for one group.
at::Tensor unpack_int4(const Int4Weight& weight, at::ScalarType dtype);

// y = x weight^T, in x's dtype; leading dims of x are kept. Activations have 16 bits (two digits of 8).
at::Tensor int4_linear(const at::Tensor& x, const Int4Weight& weight);

// ops::int8_grouped_mm with int4 weights.
at::Tensor int4_grouped_mm(const at::Tensor& x, const at::Tensor& index_R, int64_t divisor,
                           const Int4Weight& weight, const at::Tensor& bias_GN, const at::Tensor& offsets_G1,
                           at::ScalarType dtype);

}  // namespace moebius::ops
