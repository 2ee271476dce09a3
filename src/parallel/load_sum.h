// Loads of experts summed over the ranks that share a micro-batch.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/feed_forward.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// One small all-reduce for each sum, which is waited for: behind the last layer of a pass. The communicator
// must outlive it.
class RankLoadSum final : public nn::LoadSum {
 public:
  explicit RankLoadSum(Communicator& communicator) : communicator_(communicator) {}
  int num_ranks() const override { return communicator_.size(); }
  at::Tensor sum(const at::Tensor& counts_E) const override;

 private:
  Communicator& communicator_;
};

}  // namespace moebius::parallel
