// What a policy makes of a list of documents: efficiency, balance, speed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/planner/planner.h"

namespace moebius::data {

struct PlanReport {
  int64_t documents = 0;  // that have tokens
  int64_t documents_cut = 0;
  int64_t pieces = 0, tokens = 0, padding = 0;
  int64_t steps = 0, micro_batches = 0;  // micro-batches that are not empty
  int64_t largest_micro_batch = 0;       // tokens, padding included
  int64_t max_delay_steps = 0;
  double max_over_mean_tokens = 1, max_over_mean_cost = 1, max_over_mean_rank_cost = 1;
  double worst_cost = 1;  // largest max/mean of any step
  double seconds = 0;     // of planning alone

  double token_efficiency() const {
    return static_cast<double>(tokens) / static_cast<double>(tokens + padding);
  }
  double microseconds_per_sample() const { return seconds * 1e6 / static_cast<double>(documents); }
};

// Plans the whole of a finite stream.
//
// Imbalance is sum over steps of the largest micro-batch / sum over steps of the mean one: the time of a run
// in which everybody waits for the slowest, as a multiple of the ideal. A step that the end of the stream
// left incomplete counts only when there is no other, over the micro-batches that it has. Delay of a piece:
// steps from the first one that trains on a later arrival to its own.
PlanReport plan_all(Planner& planner, const PlanShape& shape);

}  // namespace moebius::data
