// How the gradients that a rank has of its part of the batch become those of the whole batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/param.h"

namespace moebius::parallel {

class Communicator;
class Mesh;

class GradientSync {
 public:
  virtual ~GradientSync() = default;
  // Before the backward pass of micro-batch `micro` of `num_micro` of a step: after the last one begins,
  // gradients that are complete may travel.
  virtual void begin_backward(int64_t micro, int64_t num_micro) = 0;
  // After the last backward pass of a step: when it returns, the gradients that this rank's optimizer reads
  // are sums over the ranks. On a GPU the work is queued.
  virtual void finish() = 0;
};

// Every rank keeps all: one all-reduce for each bucket of gradients after the last backward pass, over the
// data axis, and for experts over the ranks that hold the same ones. Traffic: 2 (n - 1) / n of the gradients
// per step.
class AllReduceGradients final : public GradientSync {
 public:
  // Table and mesh must outlive it.
  AllReduceGradients(nn::ParamTable& params, const Mesh& mesh) : params_(params), mesh_(mesh) {}
  void begin_backward(int64_t /*micro*/, int64_t /*num_micro*/) override {}
  void finish() override;

 private:
  nn::ParamTable& params_;
  const Mesh& mesh_;
};

}  // namespace moebius::parallel
