// Process groups of NCCL for the program (kernels/api/plugin.h).
#pragma once

#include "kernels/api/plugin.h"

namespace moebius::kernels::cuda {

void* nccl_group(const NcclGroup& group);

}  // namespace moebius::kernels::cuda
