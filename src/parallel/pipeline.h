// A stage of a pipeline carries out its part of a schedule (tune/pipeline_schedule.h): passes of
// micro-batches through its pieces of the model, and between them transfers that run while it computes.
//
// A receive is begun one task ahead of the one that needs it, so that the next input arrives while the
// present one is computed (two buffers); a send is begun behind its task and waited for at the end of the
// step. On a GPU no wait stops the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/mesh.h"
#include "tune/pipeline_schedule.h"

namespace moebius::parallel {

// What a piece has made of a micro-batch.
struct PieceResult {
  at::Tensor stream;  // for the next piece; undefined of the last
  at::Tensor loss;    // scalar to differentiate; undefined where a piece adds none
};

struct PipelineWork {
  // Of the stream between pieces.
  std::function<std::vector<int64_t>(int64_t micro_batch)> stream_sizes;
  at::TensorOptions stream_options;
  // input: undefined for the first piece; else a leaf of autograd.
  std::function<PieceResult(const tune::PipelineTask& task, const at::Tensor& input)> forward;
  // Calls pass(), which runs autograd over what forward() has made. `is_last`: no gradients come after it.
  // Of passes in turns (turns.h), in which forward() is called, it is called once, with the first task; or
  // for each of them where graphs differentiate parts of themselves on their own (nn/recompute.h), and
  // gradients of one step would come in several parts.
  std::function<void(const tune::PipelineTask& task, bool is_last, const std::function<void()>& pass)>
      backward;
  bool differentiates_together = true;
  // Tasks of weights, where the schedule has them.
  std::function<void(const tune::PipelineTask& task, bool is_last)> weight;
};

// Runs the step of this rank's stage. `mesh`: null for a schedule of one stage. `reads_ahead` = false begins
// a receive only when its values are needed. CommunicationFailed as the mesh's communicators.
void run_pipeline(const tune::PipelineSchedule& schedule, const Mesh* mesh, const PipelineWork& work,
                  bool reads_ahead = true);

}  // namespace moebius::parallel
