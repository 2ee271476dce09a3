// The embedding of a pipeline whose first stage embeds with it and whose last computes logits, or embeds
// again, with a copy: both add up their gradients, and so make the same update.
#pragma once

#include "nn/param.h"
#include "parallel/data_parallel.h"

namespace moebius::parallel {

class Mesh;

// The parameter is a bucket of its own, so that both stages cut it alike, and its norm is counted once.
void share_embedding(const Mesh& mesh, DataParallelOptions& options);

// On all ranks of both stages, after finish_gradients().
void sum_shared_embedding(const Mesh& mesh, DataParallel& shares);

}  // namespace moebius::parallel
