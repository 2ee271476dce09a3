// Types shared by every kernel family. Plain C++: no torch, no CUDA headers.
// Letters for shapes: T tokens, R rows (T*K, one per token and chosen expert), D model width, F expert width,
// E experts, K experts per token, H heads, V vocabulary, G groups.
#pragma once

#include <cstdint>

namespace moebius::kernels {

enum class DType : uint8_t { f32, bf16 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// A cudaStream_t for device kernels; ignored by the CPU, whose kernels return when the work is done.
using Stream = void*;

}  // namespace moebius::kernels
