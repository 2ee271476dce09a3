// One entry per kernel variant; the variants are compiled in files of their own (grouped_forward.cu and its
// siblings).
#pragma once

#include "kernels/cuda/grouped_kernel.cuh"

namespace moebius::kernels::cuda {

// A compiled kernel and what the host must know of it.
struct GroupedVariant {
  const char* name;
  GroupedGemmKind kind;
  Epilogue epilogue;
  Gather gather;
  TileShape tile;
  bool pingpong, pairs;
  int box_a, box_b;  // rows of a box of each operand's map
  int max_groups;
  void (*launch)(const GroupedKernelParams& params, cudaStream_t stream);
};

struct GroupedVariants {
  const GroupedVariant* begin;
  const GroupedVariant* end;
};
GroupedVariants forward_variants();
GroupedVariants input_grad_variants();
GroupedVariants weight_grad_variants();

}  // namespace moebius::kernels::cuda
