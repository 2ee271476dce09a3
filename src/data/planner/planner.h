// Batch planners: who decides which documents a step trains on, in which micro-batches.
//
// A planner looks at a window of documents ahead and is a pure function of its stream and shape: no wall
// clock, no random numbers, no threads. Every piece of the stream is planned exactly once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/batching.h"
#include "data/planner/cost_model.h"
#include "data/planner/document_stream.h"
#include "data/planner/plan.h"
#include "data/planner/window.h"

namespace moebius::data {

class Planner {
 public:
  virtual ~Planner() = default;

  // Plans the next step; false when the stream has ended and nothing is left. Storage of `plan` is reused.
  bool next(StepPlan& plan);
  // The step that next() will plan.
  int64_t step() const { return step_; }

  // Everything that the steps to come depend on, as one line of JSON: the stream's position, the waiting
  // pieces (at most the window) and a few numbers of the policy.
  std::string state() const;
  // Goes on as the planner of `state` would. Only before the first step, with the same policy, shape and
  // stream.
  void restore(const std::string& state);

 protected:
  Planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape, const CostModel& cost);

  // Fills the micro-batches, which are clear; leaves all of them empty when nothing is left.
  virtual void plan(std::vector<MicroBatchPlan>& micro_batches) = 0;
  virtual std::vector<Pending> pending() const = 0;
  virtual std::vector<int64_t> numbers() const = 0;
  virtual void resume(const std::vector<Pending>& pending, const std::vector<int64_t>& numbers) = 0;

  DocumentStream& stream() { return *stream_; }
  const PlanShape& shape() const { return shape_; }
  const CostModel& cost() const { return cost_; }

 private:
  std::unique_ptr<DocumentStream> stream_;
  PlanShape shape_;
  CostModel cost_;
  int64_t step_ = 0;
};

// pad            each document is a row padded to the context, in order of arrival
// three-buckets  rows of one length class (< 128, 128 to 256, > 256) padded to the longest; classes that fill
//                a micro-batch are served shortest first, every fourth micro-batch is a time slice of the
//                long class, in which no document has more than one piece
// edges:A,B,...  the same rows with classes <= A, <= B, ... and the rest; of the classes that fill a
//                micro-batch the one with the oldest document is served
// buckets:N      the same with edges between N classes of equal tokens, estimated from the lengths seen
// pack           each micro-batch is filled by best fit: the oldest documents, then the pieces whose lengths
//                come closest to what is left; padded to its full size
// balanced       filled by best fit to equal cost instead of equal tokens, never padded, at most 5/4 of the
//                room; pieces that cost more than a mean micro-batch wait, at most max_delay steps, until
//                there is one for each micro-batch
// `batching.kind` is not `window`.
std::unique_ptr<Planner> make_planner(const config::Batching& batching,
                                      std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                      const CostModel& cost);

// The policies, for make_planner.
std::unique_ptr<Planner> make_padded_planner(const config::Batching& batching,
                                             std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                             const CostModel& cost);
std::unique_ptr<Planner> make_pack_planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                           const CostModel& cost);
std::unique_ptr<Planner> make_balanced_planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                               const CostModel& cost);

}  // namespace moebius::data
