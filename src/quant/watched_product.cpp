#include "quant/watched_product.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "ops/grouped_mm.h"
#include "ops/linear.h"
#include "quant/format.h"

namespace moebius::quant {

double InputStatistics::relative_error() const {
  return square > 0 ? std::sqrt(error_square / square) : 0;
}

void WatchedProduct::note(const at::Tensor& x) const {
  if (x.numel() == 0) return;
  const at::Tensor rows = x.detach().reshape({-1, x.size(-1)}).to(at::kFloat);
  const at::Tensor ranges = range_of(rows, Granularity::per_row);
  if (!ranges.isfinite().all().item<bool>())
    throw_user_error("the range of what ", name_,
                     " is multiplied with is not finite on the calibration text: the model computes NaN or "
                     "infinity there; quantise an earlier checkpoint");
  const at::Tensor scales = scales_of(ranges);
  const at::Tensor rms = rows.square().mean(-1, /*keepdim=*/true).sqrt();
  statistics_.num_rows += rows.size(0);
  statistics_.num_values += rows.numel();
  statistics_.range = std::max(statistics_.range, ranges.max().item<double>());
  statistics_.peak_ratio =
      std::max(statistics_.peak_ratio, (ranges / rms.clamp_min(1e-30)).max().item<double>());
  statistics_.square += rows.square().sum(at::kDouble).item<double>();
  statistics_.error_square +=
      (rounded_to_codes(rows, scales) - rows).square().sum(at::kDouble).item<double>();
}

at::Tensor WatchedProduct::linear(const at::Tensor& x, const at::Tensor& weight_NK) const {
  note(x);
  return ops::linear(x, weight_NK);
}

at::Tensor WatchedProduct::expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing,
                                      const ExpertWeights& experts, bool recompute) const {
  note(x_TD);
  if (experts.form.is_plain()) {
    const auto* const down = dynamic_cast<const WatchedProduct*>(experts.down_product);
    MOEBIUS_CHECK(down != nullptr, "experts' weights of two kinds");
    const at::Tensor act_RF =
        ops::grouped_mm_swiglu(ops::routed_rows(x_TD, routing), experts.gate_up_E2FD, routing, /*keep=*/false)
            .act;
    const at::Tensor used = routing.offsets_E1.narrow(0, routing.offsets_E1.size(0) - 1, 1);
    down->note(act_RF.narrow(0, 0, used.item<int32_t>()));
  }
  ExpertWeights plain = experts;
  plain.gate_up_product = plain.down_product = nullptr;
  return quant::expert_ffn(x_TD, routing, plain, recompute);
}

}  // namespace moebius::quant
