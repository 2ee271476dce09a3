// Descriptions of tensors for the copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moebius::kernels::cuda {

// Elements of `bytes` bytes each (1, or 2 for bf16), (depth, rows, width) with rows `pitch` elements and
// planes `plane` elements apart, both multiples of 16 bytes; boxes of box_rows rows of 128 bytes, swizzled.
CUtensorMap tensor_map(const void* data, int bytes, int64_t width, int64_t rows, int64_t depth, int64_t pitch,
                       int64_t plane, int box_rows);

}  // namespace moebius::kernels::cuda
