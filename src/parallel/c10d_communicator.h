// Communicator over a process group of libtorch's c10d: Gloo on the CPU.
//
// How collectives are sent, which is what traffic() counts, for n ranks:
//   all_reduce      Gloo's ring: each rank sends 2 (n - 1) / n of the tensor. All ranks get the same bits.
//   Types of
//                   16 bits are summed in fp32, and sent as that.
//   all_gather      Gloo's ring: n - 1 times the input of a rank.
//   reduce_scatter  Gloo's own is an all-reduce of everything. Here each rank sends every other rank its part
//   (an
//                   all-to-all, (n - 1) / n of the input), and sums what it gets in the order of ranks, types
//                   of 16 bits in fp32: deterministic. The sum is made in wait().
//   all_to_all      each row once, straight to its rank.
//   broadcast       Gloo's tree: the root sends log2(n) copies, others fewer.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {

class Positions;

// Before a process makes its first group, while it has one thread: what c10d warns of, at length, comes back
// as an error in our own words, and its flight recorder stays off unless TORCH_FR_BUFFER_SIZE says otherwise
// (Positions knows where each rank stands, and the recorder of libtorch 2.11 takes the first exchanges of
// groups in several threads without a lock).
void set_up_c10d();

struct GroupOptions {
  std::string axis;                           // for messages
  std::string name;                           // of this group, no other group of the run has it: "tp.0"
  int rank = 0, size = 1;                     // in the group
  int world_rank = 0;                         // for messages
  double timeout_s = 300;                     // of each collective
  std::shared_ptr<Positions> positions = {};  // told of every collective; may be null
};

// All ranks of the group make it at the same time, groups in the same order everywhere. UserError when they
// do not find each other. The network is the one on which the rendezvous is reached, or GLOO_SOCKET_IFNAME's.
std::unique_ptr<Communicator> make_gloo_communicator(const Rendezvous& rendezvous,
                                                     const GroupOptions& options);

}  // namespace moebius::parallel
