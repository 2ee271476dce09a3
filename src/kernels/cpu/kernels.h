// The CPU's kernels, one per entry of the table. Contracts: kernels/api. Every one returns when its work is
// done, uses the shared thread team (base/parallel.h), and gives the same bits for any number of threads.
#pragma once

#include "kernels/api/table.h"
#include "kernels/cpu/grouped_gemm.h"

namespace moebius::kernels::cpu {

void rms_norm_forward(const RmsNormForwardArgs&, Stream);
void rms_norm_backward(const RmsNormBackwardArgs&, Stream);
void rope_forward(const RopeForwardArgs&, Stream);
void rope_backward(const RopeBackwardArgs&, Stream);
void swiglu_forward(const SwigluForwardArgs&, Stream);
void swiglu_backward(const SwigluBackwardArgs&, Stream);
void route_forward(const RouteForwardArgs&, Stream);
void route_backward(const RouteBackwardArgs&, Stream);
void route_stats(const RouteStatsArgs&, Stream);
void sort_by_expert(const SortByExpertArgs&, Stream);
void gather_rows(const GatherRowsArgs&, Stream);
void combine_rows(const CombineRowsArgs&, Stream);
void attention_forward(const AttentionForwardArgs&, Stream);
void attention_backward(const AttentionBackwardArgs&, Stream);
void cross_entropy(const CrossEntropyArgs&, Stream);
void adamw(const AdamWArgs&, Stream);
void adamw_8bit(const AdamWArgs&, Stream);
void sum_squares(const SumSquaresArgs&, Stream);
void int8_rows(const Int8RowsArgs&, Stream);
void int8_pack(const Int8PackArgs&, Stream);
void int8_gemm(const Int8GemmArgs&, Stream);

}  // namespace moebius::kernels::cpu
