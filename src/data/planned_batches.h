// Training batches whose documents a planner chose (docs/batching.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "data/loader.h"
#include "data/planner/planner.h"

namespace moebius::data {

// Micro-batch m of a step is micro-batch m of rank `rank` in the planner's step: pieces one after another as
// documents of their own, each with the token after it as its last target where the document goes on, then
// the padding of the plan. The loss of a batch is that of its documents one by one.
//
// fill() is a pure function of (step, micro) as for every source: the plan of a step follows from those
// before it, so a source that starts later plans the skipped steps without reading a token (less than a
// microsecond per document).
class PlannedBatches : public BatchSource {
 public:
  struct Options {
    config::Batching batching;
    PlanShape shape;
    CostModel cost;
    CorpusStream::Options stream;
    int64_t rank = 0;
    int64_t vocab_size = 0;  // a corpus with a larger id is a UserError
  };
  PlannedBatches(std::vector<SamplerSource> sources, const Options& options);
  void fill(int64_t step, int64_t micro, Batch& batch) override;

 private:
  void plan_up_to(int64_t step);

  std::vector<SamplerSource> sources_;
  Options options_;
  std::unique_ptr<Planner> planner_;
  StepPlan plan_;  // of step planner_->step() - 1
  std::vector<int32_t> text_;
};

}  // namespace moebius::data
