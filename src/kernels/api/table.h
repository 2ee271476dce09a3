// One table of kernels per device. The CPU's is always there; the CUDA plug-in brings its own when it is
// loaded.
#pragma once

#include "kernels/api/attention.h"
#include "kernels/api/grouped_gemm.h"
#include "kernels/api/int8_gemm.h"
#include "kernels/api/loss.h"
#include "kernels/api/norm.h"
#include "kernels/api/optimizer.h"
#include "kernels/api/permute.h"
#include "kernels/api/rope.h"
#include "kernels/api/route.h"
#include "kernels/api/swiglu.h"

namespace moebius::kernels {

// Every entry: arguments are checked by the caller (ops); on a device the call is asynchronous on `stream`
// and the memory that the arguments point to must stay valid until the stream has passed it.
struct KernelTable {
  const char* name;
  void (*rms_norm_forward)(const RmsNormForwardArgs&, Stream);
  void (*rms_norm_backward)(const RmsNormBackwardArgs&, Stream);
  void (*rope_forward)(const RopeForwardArgs&, Stream);
  void (*rope_backward)(const RopeBackwardArgs&, Stream);
  void (*swiglu_forward)(const SwigluForwardArgs&, Stream);
  void (*swiglu_backward)(const SwigluBackwardArgs&, Stream);
  void (*route_forward)(const RouteForwardArgs&, Stream);
  void (*route_backward)(const RouteBackwardArgs&, Stream);
  void (*route_stats)(const RouteStatsArgs&, Stream);
  void (*sort_by_expert)(const SortByExpertArgs&, Stream);
  void (*gather_rows)(const GatherRowsArgs&, Stream);
  void (*combine_rows)(const CombineRowsArgs&, Stream);
  void (*attention_forward)(const AttentionForwardArgs&, Stream);    // null on CUDA
  void (*attention_backward)(const AttentionBackwardArgs&, Stream);  // null on CUDA
  void (*grouped_gemm)(const GroupedGemmArgs&, Stream);
  bool (*grouped_gemm_serves)(const GroupedGemmArgs&);  // whether it computes this; null: everything
  // Names of the kernels that can compute this, the first `most` of them into `names` (static strings);
  // returns how many there are. Null: there is no choice.
  int32_t (*grouped_gemm_variants)(const GroupedGemmArgs&, const char** names, int32_t most) = nullptr;
  void (*cross_entropy)(const CrossEntropyArgs&, Stream);
  void (*adamw)(const AdamWArgs&, Stream);
  void (*adamw_8bit)(const AdamWArgs&, Stream);  // of tensors with scales
  void (*sum_squares)(const SumSquaresArgs&, Stream);
  // Integer products and how their codes lie; null where a device has none.
  Int8Layout int8_layout = Int8Layout::panels;
  void (*int8_rows)(const Int8RowsArgs&, Stream) = nullptr;
  void (*int8_pack)(const Int8PackArgs&, Stream) = nullptr;
  void (*int8_gemm)(const Int8GemmArgs&, Stream) = nullptr;
  void (*int8_transpose)(const Int8TransposeArgs&, Stream) = nullptr;  // null on the CPU
  bool (*int8_serves)() = nullptr;  // whether the current device computes them; null: yes
};

const KernelTable& cpu_kernels();

}  // namespace moebius::kernels
