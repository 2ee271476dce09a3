// The integer products on Hopper: which kernel variant serves which product, and how it is launched.
#pragma once

#include <vector>

#include "kernels/api/int8_gemm.h"
#include "kernels/cuda/int8_tiles.h"

namespace moebius::kernels::cuda {

struct Int8Variant;  // int8_gemm.cuh

// Whether the current device has the instructions.
bool int8_serves();

// Variants that can compute this product.
std::vector<const Int8Variant*> int8_variants(const Int8GemmArgs& args);
const char* name_of(const Int8Variant& variant);
const Int8Tile& tile_of(const Int8Variant& variant);
void run_int8_variant(const Int8Variant& variant, const Int8GemmArgs& args, Stream stream);

// By the variant that takes least by int8_cycles.
void int8_gemm(const Int8GemmArgs& args, Stream stream);

}  // namespace moebius::kernels::cuda
