#include "data/planned_batches.h"

#include <utility>

#include "base/check.h"

namespace moebius::data {
namespace {

std::unique_ptr<Planner> start_planner(const std::vector<SamplerSource>& sources,
                                       const PlannedBatches::Options& options) {
  return make_planner(options.batching, std::make_unique<CorpusStream>(sources, options.stream),
                      options.shape, options.cost);
}

}  // namespace

PlannedBatches::PlannedBatches(std::vector<SamplerSource> sources, const Options& options)
    : sources_(std::move(sources)), options_(options), planner_(start_planner(sources_, options_)) {
  MOEBIUS_CHECK_EQ(options.stream.context, options.shape.context);
  MOEBIUS_CHECK(options.rank >= 0 && options.rank < options.shape.ranks, "rank ", options.rank);
}

void PlannedBatches::plan_up_to(int64_t step) {
  if (planner_->step() > step + 1) planner_ = start_planner(sources_, options_);
  while (planner_->step() <= step) MOEBIUS_CHECK(planner_->next(plan_));
}

void PlannedBatches::fill(int64_t step, int64_t micro, Batch& batch) {
  MOEBIUS_CHECK(step >= 0 && micro >= 0 && micro < options_.shape.micro_batches, "step ", step,
                ", micro-batch ", micro);
  plan_up_to(step);
  const MicroBatchPlan& plan = plan_.micro_batches[options_.rank * options_.shape.micro_batches + micro];
  batch.clear();
  batch.step = step;
  batch.micro = micro;
  for (const Piece& piece : plan.pieces) {
    const SamplerSource& source = sources_[piece.source];
    const TokenRange document = document_in(source, piece.document);
    const int64_t begin = document.begin + piece.begin, end = begin + piece.length;
    text_.clear();
    source.corpus->read({begin, std::min(end + 1, document.end)}, options_.vocab_size, text_);
    batch.add_sequence(text_, piece.length, {});
    if (plan.row_length > 0) batch.add_padding(plan.row_length - piece.length);
  }
  if (plan.row_length == 0) {
    // One flat sequence: the borders of documents are all there is.
    batch.add_padding(plan.padding);
    batch.num_sequences = 1;
    batch.sequence_length = batch.num_tokens();
  } else {
    batch.sequence_length = plan.row_length;
  }
}

}  // namespace moebius::data
