// The CUDA entries of the kernel table (kernels/api/table.h), one .cu file per family. Asynchronous on
// `stream`.
#pragma once

#include "kernels/api/table.h"

namespace moebius::kernels::cuda {

void rms_norm_forward(const RmsNormForwardArgs& args, Stream stream);
void rms_norm_backward(const RmsNormBackwardArgs& args, Stream stream);
void rope_forward(const RopeForwardArgs& args, Stream stream);
void rope_backward(const RopeBackwardArgs& args, Stream stream);
void swiglu_forward(const SwigluForwardArgs& args, Stream stream);
void swiglu_backward(const SwigluBackwardArgs& args, Stream stream);
void route_forward(const RouteForwardArgs& args, Stream stream);
void route_backward(const RouteBackwardArgs& args, Stream stream);
void route_stats(const RouteStatsArgs& args, Stream stream);
void sort_by_expert(const SortByExpertArgs& args, Stream stream);
void gather_rows(const GatherRowsArgs& args, Stream stream);
void combine_rows(const CombineRowsArgs& args, Stream stream);
void cross_entropy(const CrossEntropyArgs& args, Stream stream);
void adamw(const AdamWArgs& args, Stream stream);
void adamw_8bit(const AdamWArgs& args, Stream stream);
void sum_squares(const SumSquaresArgs& args, Stream stream);
void int8_rows(const Int8RowsArgs& args, Stream stream);
void int8_pack(const Int8PackArgs& args, Stream stream);
void int8_transpose(const Int8TransposeArgs& args, Stream stream);

// All of them, with those of grouped_gemm.h and int8_gemm.h.
const KernelTable& cuda_kernels();

}  // namespace moebius::kernels::cuda
