// A schedule as text: for each stage a row of what it computes and a row of what it sends, a column per slot.
#pragma once

#include <string>

#include "tune/pipeline_schedule.h"

namespace moebius::tune {

// What ranks of a stage exchange beside the pipeline.
struct DataExchanges {
  enum class When : uint8_t { never, once, always };
  When gradients = When::never;  // summed: behind the last passes of a step, or each backward pass
  When weights = When::never;    // gathered: ahead of a step's first passes, or each pass
};

// A slot is a forward pass of one piece, all pieces alike. Rows of computation: F, B and W with the
// micro-batch (and a letter for the piece, where a stage has several); B takes two slots where it includes
// the gradients of weights; passes that are made in turns have a ~; U is the update. Rows of communication: >
// activations and < gradients on their way to the next stage and the one before, S gradients that are being
// summed and G weights that are being gathered among the ranks of the stage.
std::string draw(const PipelineSchedule& schedule, const DataExchanges& exchanges = {});

}  // namespace moebius::tune
