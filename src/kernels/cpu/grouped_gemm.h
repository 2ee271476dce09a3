// The CPU's grouped_gemm (contract: kernels/api/grouped_gemm.h). Results do not depend on the number of
// threads.
#pragma once

#include "kernels/api/grouped_gemm.h"

namespace moebius::kernels::cpu {

void grouped_gemm(const GroupedGemmArgs& args, Stream);

}  // namespace moebius::kernels::cpu
