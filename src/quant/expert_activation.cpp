// Shapes: R rows, F expert width.
#include "quant/expert_activation.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/sigmoid.h>

#include "ops/expert_rows.h"

namespace moebius::quant {

at::Tensor expert_activation(const at::Tensor& gate_up_R2F, const ops::ExpertForm& form,
                             const ops::Routing& routing) {
  if (!form.clamped) return ops::activate_rows(gate_up_R2F, routing);
  const at::Tensor pairs = gate_up_R2F.unflatten(1, {-1, 2});
  const at::Tensor gate = pairs.select(2, 0).clamp_max(form.limit);
  const at::Tensor up = pairs.select(2, 1).clamp(-form.limit, form.limit);
  return ((up + 1) * gate * at::sigmoid(gate * form.alpha)).contiguous();
}

at::Tensor fp32_bias(const at::Tensor& bias) {
  return bias.defined() ? bias.detach().to(at::kFloat).contiguous() : at::Tensor();
}

}  // namespace moebius::quant
