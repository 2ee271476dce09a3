#include "kernels/api/table.h"

#include "kernels/cpu/kernels.h"

namespace moebius::kernels {

const KernelTable& cpu_kernels() {
  static constexpr KernelTable kTable = {
      .name = "cpu",
      .rms_norm_forward = cpu::rms_norm_forward,
      .rms_norm_backward = cpu::rms_norm_backward,
      .rope_forward = cpu::rope_forward,
      .rope_backward = cpu::rope_backward,
      .swiglu_forward = cpu::swiglu_forward,
      .swiglu_backward = cpu::swiglu_backward,
      .route_forward = cpu::route_forward,
      .route_backward = cpu::route_backward,
      .route_stats = cpu::route_stats,
      .sort_by_expert = cpu::sort_by_expert,
      .gather_rows = cpu::gather_rows,
      .combine_rows = cpu::combine_rows,
      .attention_forward = cpu::attention_forward,
      .attention_backward = cpu::attention_backward,
      .grouped_gemm = cpu::grouped_gemm,
      .grouped_gemm_serves = nullptr,
      .cross_entropy = cpu::cross_entropy,
      .adamw = cpu::adamw,
      .adamw_8bit = cpu::adamw_8bit,
      .sum_squares = cpu::sum_squares,
      .int8_rows = cpu::int8_rows,
      .int8_pack = cpu::int8_pack,
      .int8_gemm = cpu::int8_gemm,
  };
  return kTable;
}

}  // namespace moebius::kernels
