// What a run will be, before anything is allocated: parameters, arithmetic and memory that follow from its
// config. Printed by `moebius plan`; the trainer checks its memory before it takes any.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "config/train_config.h"
#include "nn/param.h"
#include "train/memory_plan.h"

namespace moebius::train {

struct Plan {
  config::RunConfig config;  // train.micro_batch is filled in
  bool on_cuda = false;

  std::vector<std::pair<nn::ParamClass, int64_t>> parameters;  // with a gradient, by class; no empty classes
  int64_t total_parameters = 0;
  int64_t active_parameters = 0;         // total less the experts that a token is not sent to
  double flops_per_token = 0;            // forward and backward, see train/flops.h
  double recompute_flops_per_token = 0;  // beyond them
  int64_t tokens_per_step = 0;
  int64_t micro_batches = 1;
  // What each rank of parallel.cp sends of keys, values and their gradients for a micro-batch, forward and
  // backward (parallel/ring_attention.h); 0 without.
  int64_t context_bytes_per_pass = 0;
  MemoryPlan memory;

  double flops_per_step() const { return flops_per_token * static_cast<double>(tokens_per_step); }
  // The most that the run takes of the memory its model lies in: the step, and on the CPU the copies of
  // background checkpoints.
  int64_t needed_bytes() const;
};

// A pure function of its arguments. `config` is valid, with model.vocab > 0; train.recompute "auto" counts as
// none (train/recompute_choice.h decides it).
Plan make_plan(const config::RunConfig& config, bool on_cuda);

// A change of one field that makes the run need less.
struct Saving {
  std::string field, value;
  int64_t needed_bytes;  // with this change alone
};
// The changes that save at least a hundredth, in the order in which one would try them. The micro-batch is
// the largest with which the run fits into `available_bytes`, or 1.
std::vector<Saving> possible_savings(const Plan& plan, int64_t available_bytes);

std::string to_text(const Plan& plan);
nlohmann::ordered_json to_json(const Plan& plan);

// UserError when the run would not fit, even if the prediction were a tenth too high: says what is needed by
// class, and which fields to change, with what the run needs then.
void check_memory_fits(const Plan& plan, int64_t available_bytes);

// The same advice for an allocation that failed. `what`: what the allocator said.
std::string out_of_memory_message(const Plan& plan, const std::string& what);

}  // namespace moebius::train
