// Where the tokens of a layer go when their experts are on other ranks, chunk by chunk: planned on the
// device, and told to the ranks that they go to.
//
// All chunks are planned together: one sort of all slots by (chunk, rank), one exchange of sizes, and, on a
// GPU, one copy to the host, which the planning that sizes are not needed for runs beside.
//
// Shapes: T tokens, K experts per token; of a chunk S rows that leave, A rows that arrive, W experts of one
// rank that a token may go to; N ranks, C chunks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "ops/route.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// What trips have sent to other ranks in their forward passes.
struct ExpertTraffic {
  int64_t rows = 0;   // one per token and rank
  int64_t slots = 0;  // that these stand for: one per token and expert
};

struct TravelPlan {
  // Of the chunk, over the slots (t, k) that are the first of their token with their rank, sorted by rank:
  // order_R has S entries, inverse_R is -1 for all other slots. weights_TK is there for its size.
  ops::Routing travel;
  // int64: of each slot the place of its expert's number in (S, 2 W) behind num_spare() elements; that of its
  // weight is W further. 0 of dropped slots.
  at::Tensor place_TK;
  at::Tensor local_expert_TK;    // int32, of its rank
  int64_t num_places = 0;        // W
  int64_t num_rows = 0;          // S
  std::vector<int64_t> leaving;  // rows for each rank
  std::vector<int64_t> arriving;
  int64_t num_arriving = 0;  // A

  // Behind which what dropped slots write is out of the way; rows stay aligned.
  int64_t num_spare() const { return (num_places + 4) / 4 * 4; }
};

// As many chunks as can be planned together among so many ranks.
int64_t most_chunks(int num_ranks);

// A collective of all ranks of `comm`. `sizes`: tokens of each chunk, T in all; the routing is over
// N * num_local experts, which differ within a token. Adds to `traffic`. On a GPU the host waits for the
// router of the layer here, once.
std::vector<TravelPlan> plan_travel(Communicator& comm, const ops::Routing& routing,
                                    const std::vector<int64_t>& sizes, int64_t num_local,
                                    ExpertTraffic& traffic);

}  // namespace moebius::parallel
