// Loss of a model on a text.
#pragma once

#include <cstdint>

#include "data/batches.h"
#include "nn/decoder.h"

namespace moebius::parallel {
class Mesh;
}

namespace moebius::train {

struct Evaluation {
  double loss = 0;           // mean cross-entropy, nats per token
  double perplexity = 0;     // exp(loss)
  double bits_per_byte = 0;  // of the text that the targets stand for; 0 when that is not known
  double max_violation = 0;  // expert load over the whole text: of the worst layer, max / mean - 1
  int64_t num_targets = 0;
  int64_t target_bytes = 0;
};

// The first `max_batches` batches (0: all) of the set. No capacity limit applies. With a mesh all ranks call
// it, each data rank takes every n-th batch, and all get the result of the whole.
Evaluation evaluate(const nn::Decoder& decoder, data::ValidationSet& set, int64_t max_batches = 0,
                    const parallel::Mesh* mesh = nullptr);

}  // namespace moebius::train
