// Weights that are held as integers, in the layout of the package compressed-tensors (which Transformers and
// vLLM load). int8 per output channel with activations per token: "int-quantized", NAME.weight I8 and
// NAME.weight_scale. int8 or int4 (in groups) with activations in floats: "pack-quantized",
// NAME.weight_packed with four codes + 128 or eight codes + 8 in an I32, the first in the lowest bits;
// NAME.weight_scale; NAME.weight_shape. Source of names and layout: compressed-tensors 0.20, `compressors/`.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ckpt/hf/piece.h"
#include "ckpt/safetensors.h"

namespace moebius::ckpt::hf {

// A tensor of a folder, put together when it is written.
struct DiskTensor {
  TensorSpec spec;
  std::function<at::Tensor()> make;  // of the spec's dtype and shape
};

// A parameter of integers. Shapes of a parameter (..., N, K).
struct IntegerWeight {
  at::Tensor
      codes;  // int8 (..., N, K), or uint8 (..., N, ceil(K / 2)) with code + 8 of even k in the low halves
  at::Tensor scales;  // fp32 (..., N), or (..., N, groups)
  int64_t group = 0;  // along K; 0: int8
};

struct IntegerWeights {
  std::map<std::string, IntegerWeight> by_param;  // by our name
  int64_t group = 0;                              // of all; 0: int8
  bool rounds_activations = false;                // to 8 bits per token

  bool is_packed() const { return group > 0 || !rounds_activations; }
};

// The tensors that stand for a piece of this parameter. UserError for one that the layout cannot hold:
// transposed on disk, experts in one tensor, or int4 groups that K is no multiple of.
std::vector<DiskTensor> compressed(const Piece& piece, const IntegerWeight& weight, bool is_packed);

// config.json with its quantization_config. Linear layers of `pieces` that stay floats are listed there.
std::string with_compression(const std::string& config_text, const IntegerWeights& weights,
                             std::span<const Piece> pieces);

}  // namespace moebius::ckpt::hf
