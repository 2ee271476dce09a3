#include "nn/tensor_axis.h"

#include "nn/recompute.h"

namespace moebius::nn {

at::Tensor enter(const TensorAxis* axis, const at::Tensor& x_TD, int64_t num_tokens, Discards* discards) {
  if (axis == nullptr) return x_TD;
  const at::Tensor in_TD = axis->enter(x_TD, num_tokens);
  // Where it is memory of its own, the exchange makes it again.
  const bool is_own = !in_TD.is_alias_of(x_TD) && in_TD.storage().nbytes() == in_TD.nbytes();
  if (discards != nullptr && is_own)
    discards->add(in_TD, [axis, x = x_TD.detach(), num_tokens] { return axis->enter(x, num_tokens); });
  return in_TD;
}

}  // namespace moebius::nn
