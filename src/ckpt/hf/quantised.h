// Quantised weights of published checkpoints, widened to bf16. Formats: plan.h, Storage. Shapes: R rows, C
// columns, G groups of 32 columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moebius::ckpt::hf {

// values_RC fp8 (e4m3fn), scales fp32 or bf16 with one factor for each block of block_rows x block_columns
// (the last ones may be smaller). Products in fp32, rounded once. CPU.
at::Tensor widen_fp8_blocks(const at::Tensor& values_RC, const at::Tensor& scales, int64_t block_rows,
                            int64_t block_columns);

// blocks_RG16 and scales_RG uint8 -> (R, 32 G). Exact, but for values outside the range of bf16.
at::Tensor widen_mxfp4(const at::Tensor& blocks_RG16, const at::Tensor& scales_RG);

}  // namespace moebius::ckpt::hf
