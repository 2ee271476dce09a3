// Pieces of a decoder on the stages of a pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "config/train_config.h"
#include "nn/stage_link.h"
#include "tune/pipeline_schedule.h"

namespace moebius::parallel {

class Communicator;
class Mesh;

// The layers of each piece: parallel.pp_layers, or dealt out by their arithmetic (tune/layer_split.h).
std::vector<nn::LayerRange> layers_of_pieces(const config::RunConfig& config);

// The order of passes of a step of so many micro-batches per rank; what is carried out and what is drawn.
tune::PipelineSchedule schedule_of(const config::RunConfig& config, int64_t num_micro);

// Null where the run has one stage. The mesh outlives the result.
std::shared_ptr<const nn::DecoderPieces> make_pieces(const config::RunConfig& config, const Mesh& mesh);

// Connects neighbouring stages both ways before anything is under way between them; `in_a_ring`: the last one
// and the first too, for stages with several pieces.
void connect_stages(const Mesh& mesh, int stages, bool in_a_ring);

// What goes from stage to stage: the two directions are axes of their own, so that neither waits for the
// other on devices that carry out the exchanges of an axis in the order in which they were begun.
Communicator& way_between(const Mesh& mesh, int from, int to);

}  // namespace moebius::parallel
