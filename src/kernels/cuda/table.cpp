#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/int8_gemm.h"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {

const KernelTable& cuda_kernels() {
  static constexpr KernelTable kTable{
      .name = "cuda",
      .rms_norm_forward = rms_norm_forward,
      .rms_norm_backward = rms_norm_backward,
      .rope_forward = rope_forward,
      .rope_backward = rope_backward,
      .swiglu_forward = swiglu_forward,
      .swiglu_backward = swiglu_backward,
      .route_forward = route_forward,
      .route_backward = route_backward,
      .route_stats = route_stats,
      .sort_by_expert = sort_by_expert,
      .gather_rows = gather_rows,
      .combine_rows = combine_rows,
      .attention_forward = nullptr,
      .attention_backward = nullptr,
      .grouped_gemm = grouped_gemm,
      .grouped_gemm_serves = grouped_gemm_serves,
      .grouped_gemm_variants = grouped_gemm_variants,
      .cross_entropy = cross_entropy,
      .adamw = adamw,
      .adamw_8bit = adamw_8bit,
      .sum_squares = sum_squares,
      .int8_layout = Int8Layout::rows,
      .int8_rows = int8_rows,
      .int8_pack = int8_pack,
      .int8_gemm = int8_gemm,
      .int8_transpose = int8_transpose,
      .int8_serves = int8_serves,
  };
  return kTable;
}

}  // namespace moebius::kernels::cuda
