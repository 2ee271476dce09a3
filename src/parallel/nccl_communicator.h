// Communicator between GPUs: NCCL through c10d, in the CUDA plug-in (kernels/api/plugin.h), for tensors on
// the GPU of the process, and Gloo for those on the host.
//
// wait() makes the current stream wait; the host goes on. A group of ranks has one stream for its
// collectives, on which they run in the order in which they were begun, after what the current stream had
// queued by then. Messages to another rank have a stream for each pair and direction, so that no order of
// sends and receives among pairs can block. NCCL is told to start kernels of different groups in the order in
// which the host has begun them (NCCL_LAUNCH_ORDER_IMPLICIT), which is the same on all ranks: two groups then
// never wait for each other. Connections are made at the first use, by all ranks of the group (a message's by
// the two, of which each waits on the host for the other: first messages that wait in a circle wait for
// ever), and are gone with the object: only when the devices of all ranks have ended their work
// (Session::leave).
//
// What is sent, which is what traffic() counts, as in a ring of n ranks:
//   all_reduce 2 (n - 1) / n of the tensor; all_gather n - 1 inputs; reduce_scatter n - 1 outputs;
//   all_to_all each row once; broadcast the tensor once from every rank but the last behind the root.
// NCCL may take other ways (trees; NVLink alone does the sums). It sums in the type of the tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <functional>
#include <memory>

#include "parallel/c10d_communicator.h"

namespace moebius::parallel {

class CollectiveWatch;

// All ranks of the group make it in the same order; nothing is exchanged yet. `watch` outlives it, and may be
// null. A group of one rank, for tests, is NCCL's too.
std::unique_ptr<Communicator> make_nccl_communicator(const Rendezvous& rendezvous,
                                                     const GroupOptions& options, at::Device device,
                                                     CollectiveWatch* watch);

// Empty when NCCL can serve here, else why not: "no NVIDIA driver was found …".
std::string why_no_nccl();

}  // namespace moebius::parallel
