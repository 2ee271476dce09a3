// Where the blocks of the decoder begin and end to use their parameters, forward and backward: what keeps
// parameters elsewhere between uses (parallel/zero.h) brings them then. Layers know nothing of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moebius::nn {

enum class Pass : uint8_t { forward, backward };

// Blocks count from 0; that of multi-token prediction comes last.
class ParamGate {
 public:
  virtual ~ParamGate() = default;

  // The block's parameters are read until after() of the same pass; in the backward pass their gradients are
  // complete then. All ranks call both in the same order.
  virtual void before(int64_t block, Pass pass) = 0;
  virtual void after(int64_t block, Pass pass) = 0;
};

// The same values, for what a block computes with (behind_block: what it has computed). Their gradients pass
// in the backward pass after (before) everything that the block does there, and the gate is told. Undefined
// tensors stay so; without autograd nothing is added.
std::vector<at::Tensor> ahead_of_block(ParamGate& gate, int64_t block, std::vector<at::Tensor> inputs);
std::vector<at::Tensor> behind_block(ParamGate& gate, int64_t block, std::vector<at::Tensor> outputs);

}  // namespace moebius::nn
