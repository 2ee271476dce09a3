// The grouped products on Hopper: which kernel variant serves which product, and how it is launched.
#pragma once

#include <vector>

#include "kernels/api/grouped_gemm.h"
#include "kernels/cuda/grouped_tiles.h"

namespace moebius::kernels::cuda {

struct GroupedVariant;  // grouped_gemm.cuh

// False: this product needs another way (device before Hopper, fp32, widths that are no multiple of 8,
// unaligned pointers, very many groups).
bool grouped_gemm_serves(const GroupedGemmArgs& args);

// Variants that can compute this product.
std::vector<const GroupedVariant*> grouped_variants(const GroupedGemmArgs& args);
const char* name_of(const GroupedVariant& variant);
void run_variant(const GroupedVariant& variant, const GroupedGemmArgs& args, Stream stream);

// As KernelTable::grouped_gemm_variants.
int32_t grouped_gemm_variants(const GroupedGemmArgs& args, const char** names, int32_t most);

// By the variant that args.variant asks for, or the one that takes least by relative_time (grouped_tiles.h).
// `args` must be served.
void grouped_gemm(const GroupedGemmArgs& args, Stream stream);

}  // namespace moebius::kernels::cuda
