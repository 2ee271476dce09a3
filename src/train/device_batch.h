// Batches of the loader as tensors on the model's device.
#pragma once

#include "data/batch.h"
#include "nn/decoder.h"

namespace moebius::parallel {
class Mesh;
}

namespace moebius::train {

// On the CPU the tensors share the batch's memory, which must stay as it is while they are in use; for a
// device the batch is copied through pinned memory without waiting, and may be changed as soon as this
// returns.
nn::TokenBatch to_device(data::Batch& batch, at::Device device);

// Of a rank of several (mesh may be null): where ranks share sequences, its part of them. `with_mtp`: see
// parallel::part_of_batch.
nn::TokenBatch to_device(data::Batch& batch, at::Device device, const parallel::Mesh* mesh, bool with_mtp);

// The same into the tensors of `out`, a batch of the same shape and with the same documents that owns its
// memory.
void copy_to_device(data::Batch& batch, nn::TokenBatch& out);

}  // namespace moebius::train
