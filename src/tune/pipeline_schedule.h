// The order in which the stages of a pipeline work through the micro-batches of a step, as one object: the
// trainer executes it (parallel/pipeline.h), `moebius plan --schedule` draws it (tune/schedule_drawing.h),
// and plans of clocks take their graph from it (energy/clocks/pipeline.h).
//
// The model is cut into stages x chunks pieces of consecutive layers; stage s has the pieces s, s + stages, …
// A task is one pass of one micro-batch through one piece; transfers carry activations to the stage of the
// next piece and gradients back. Each transfer starts behind one task and is waited for before another: these
// are the only orders between the computing and the communicating streams.
//
//   1f1b         PipeDream-flush (Narayanan et al. 2021, "Memory-Efficient Pipeline-Parallel DNN Training"):
//                at most stages - s micro-batches are held by stage s
//   interleaved  several pieces per stage, in groups of `stages` micro-batches (Narayanan et al. 2021,
//                "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM"): idle
//                time falls to 1 / chunks, transfers grow to chunks times as many
//   zero_bubble  ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv 2401.10241): the gradients
//   of
//                weights are a task of their own, which stage s does s micro-batches later: the wait for the
//                gradients of inputs is a third, and every stage holds as much as the first of 1f1b
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moebius::tune {

// backward: gradients of inputs and weights; where there are tasks of weights, of inputs alone.
enum class PipelinePass : uint8_t { forward, backward, weight };

struct PipelineTask {
  PipelinePass pass = PipelinePass::forward;
  int chunk = 0;  // of the stage's pieces
  int64_t micro_batch = 0;

  bool operator==(const PipelineTask&) const = default;
};

struct PipelineTransfer {
  int from = 0, to = 0;          // stages
  size_t after = 0, before = 0;  // tasks of `from` and of `to`
  bool is_gradient = false;
};

enum class PipelineKind : uint8_t { one_f_one_b, interleaved, zero_bubble };
// "1f1b", "interleaved" or "zero_bubble" (CHECK).
PipelineKind pipeline_kind(const std::string& word);
const char* name_of(PipelineKind kind);

struct PipelineSchedule {
  PipelineKind kind = PipelineKind::one_f_one_b;
  int stages = 1, chunks = 1;
  int64_t micro_batches = 1;
  std::vector<std::vector<PipelineTask>> tasks = {};  // of each stage, in order
  std::vector<PipelineTransfer> transfers = {};       // by (from, after)
  // So many passes of one kind that follow each other are made in turns (parallel/turns.h): one computes
  // while tokens of another travel.
  int together = 1;

  int num_pieces() const { return stages * chunks; }
  int piece_of(int stage, const PipelineTask& task) const { return task.chunk * stages + stage; }
  // The most (micro-batch, piece) pairs that the stage has passed forwards and not yet to the end backwards.
  int64_t most_held(int stage) const;
};

// stages, chunks and micro_batches are at least 1; chunks above 1 go with interleaved, whose micro-batches
// come in groups of `stages` (CHECK).
PipelineSchedule make_schedule(PipelineKind kind, int stages, int chunks, int64_t micro_batches);
// One stage whose micro-batches pass in groups of `together` (at least 1; the last group has what is left).
PipelineSchedule make_turns(int64_t micro_batches, int together);

// How long tasks of each piece take, in any unit, and a transfer.
struct PipelineTimes {
  std::vector<double> forward, backward, weight;  // of each piece; `weight` only where there are such tasks
  double transfer = 0;

  // A backward pass takes twice a forward one; where weights are apart, once, and they once.
  static PipelineTimes proportional_to(const PipelineSchedule& schedule,
                                       const std::vector<double>& cost_of_piece);
};

struct Timeline {
  std::vector<std::vector<double>> begin, end;  // of each task
  double length = 0;
  double bubble = 0;  // share of the stages' time that none of their tasks takes
};

// Every task as early as its stage and its transfer allow.
Timeline timeline_of(const PipelineSchedule& schedule, const PipelineTimes& times);

}  // namespace moebius::tune
