// Shapes: T tokens, N documents.
#include "train/device_batch.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "base/check.h"
#include "parallel/mesh.h"
#include "parallel/ring_attention.h"

namespace moebius::train {
namespace {

at::Tensor transfer(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  at::Tensor pinned = at::empty(host.sizes(), host.options().pinned_memory(true));
  pinned.copy_(host);
  return pinned.to(device, /*non_blocking=*/true);
}

}  // namespace

nn::TokenBatch to_device(data::Batch& batch, at::Device device) {
  const int64_t num_tokens = batch.num_tokens();
  MOEBIUS_CHECK_EQ(num_tokens, batch.num_sequences * batch.sequence_length);
  const auto longs = at::TensorOptions().dtype(at::kLong), ints = at::TensorOptions().dtype(at::kInt);
  nn::TokenBatch out;
  out.tokens_T = transfer(at::from_blob(batch.tokens.data(), {num_tokens}, longs), device);
  out.targets_T = transfer(at::from_blob(batch.targets.data(), {num_tokens}, longs), device);
  out.positions_T = transfer(at::from_blob(batch.positions.data(), {num_tokens}, ints), device);
  out.documents.cu_seqlens = batch.cu_seqlens;
  out.documents.max_length = batch.max_seqlen;
  out.documents.sequence_length = batch.sequence_length;
  if (!device.is_cpu() && out.documents.uniform_length() == 0)
    out.documents.cu_seqlens_device = transfer(
        at::from_blob(batch.cu_seqlens.data(), {static_cast<int64_t>(batch.cu_seqlens.size())}, ints),
        device);
  out.max_position = batch.max_seqlen;
  out.num_sequences = batch.num_sequences;
  if (batch.num_sequences > 1)
    out.sequence_of_T =
        at::arange(batch.num_sequences, ints.device(device)).repeat_interleave(batch.sequence_length);
  return out;
}

nn::TokenBatch to_device(data::Batch& batch, at::Device device, const parallel::Mesh* mesh, bool with_mtp) {
  nn::TokenBatch whole = to_device(batch, device);
  if (mesh == nullptr) return whole;
  const parallel::Communicator& axis = mesh->on(parallel::Axis::cp);
  return parallel::part_of_batch(whole, {axis.size(), axis.rank()}, with_mtp);
}

void copy_to_device(data::Batch& batch, nn::TokenBatch& out) {
  const auto longs = at::TensorOptions().dtype(at::kLong), ints = at::TensorOptions().dtype(at::kInt);
  const auto copy = [](const at::Tensor& host, const at::Tensor& to) {
    MOEBIUS_CHECK(host.sizes() == to.sizes(), "a batch of ", host.sizes(), " for one of ", to.sizes());
    to.copy_(transfer(host, to.device()), /*non_blocking=*/true);
  };
  const int64_t num_tokens = batch.num_tokens();
  copy(at::from_blob(batch.tokens.data(), {num_tokens}, longs), out.tokens_T);
  copy(at::from_blob(batch.targets.data(), {num_tokens}, longs), out.targets_T);
  copy(at::from_blob(batch.positions.data(), {num_tokens}, ints), out.positions_T);
}

}  // namespace moebius::train
