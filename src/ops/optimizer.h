// Optimizer arithmetic over lists of tensors; no autograd, no host synchronisation.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace moebius::ops {

// Sum of the squares of all gradients, fp32 scalar on their device (on the CPU when there is none).
at::Tensor sum_of_squares(const std::vector<at::Tensor>& grads);

// L2 norm over all gradients, fp32 scalar on their device; not finite when any element is not.
at::Tensor global_norm(const std::vector<at::Tensor>& grads);

// min(1, max_norm / norm), 1 when max_norm is 0; not finite when norm is not. fp32 scalar on the device.
at::Tensor clip_scale(const at::Tensor& norm, double max_norm);

struct AdamWState {
  at::Tensor param;   // fp32 or bf16, updated in place
  at::Tensor master;  // fp32, or undefined
  at::Tensor grad;
  at::Tensor m, v;  // fp32 or bf16; or uint8, codes with the scales below
  double lr;
  double weight_decay;
  int64_t scalar_index = 0;     // in adamw_scalars()
  at::Tensor m_scale, v_scale;  // fp32, one for each block of moments; undefined when those are no codes
};

struct AdamWOptions {
  double beta1, beta2, eps;
  int64_t step;  // from 1
};

// One AdamW step on every entry (kernels/api/optimizer.h has the formula). grad_scale: fp32 scalar tensor
// from clip_scale(); when it is not finite nothing changes.
// `scalars`, where defined: adamw_scalars() on the parameters' device, instead of lr, weight_decay and
// options.step.
void adamw_step(const std::vector<AdamWState>& states, const AdamWOptions& options,
                const at::Tensor& grad_scale, const at::Tensor& scalars = {});

// Moments in eight bits (kernels/api/moment_codes.h): scales for `elements` moments, and the values of codes,
// fp32.
int64_t moment_blocks(int64_t elements);
at::Tensor moment_values(const at::Tensor& codes, const at::Tensor& scales, bool is_first);

struct AdamWRate {
  double lr, weight_decay;
};

// What a step takes from its number and its rates, fp32 on the CPU; entry i is for states with scalar_index
// i. A step gives the same values, bit for bit, with these as without.
at::Tensor adamw_scalars(const std::vector<AdamWRate>& rates, const AdamWOptions& options);

}  // namespace moebius::ops
