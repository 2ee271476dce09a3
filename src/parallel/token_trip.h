// One trip of a chunk of tokens to the ranks that hold their experts and back, as four steps with autograd:
//
//   Ticket there = depart(trip, x, weights);           // rows and what must be known about them leave
//   Arrival here = arrive(trip, there);                // waits for those of other ranks
//   Ticket back = send_back(trip, y);                  // y: what this rank's experts make of them
//   at::Tensor y_TD = collect(trip, back);             // waits, and sums what a token's ranks sent
//
// A row travels once per token and rank, however many of the rank's experts the token goes to; it comes back
// as their weighted sum. A step that starts an exchange returns while that is under way, and in the backward
// pass it is the step that waits: the engine of autograd runs nodes in the reverse of the order in which they
// were made, so that whatever is computed between two steps of the forward pass hides the transposed exchange
// by its own backward. Tickets carry that order and no values; all ranks must make the same steps in the same
// order.
//
// On a GPU the sizes of the exchange are read on the host, in one copy per apply() for all of its trips: the
// host waits for the router of the layer, and the GPU then for the host to queue what follows (docs/
// expert-parallel.md says what that costs). Buffers of fixed size would do without, and hold T rows for each
// of the N ranks, where at most K of them are in use.
//
// Shapes: T tokens, K experts per token, D model width; S rows that leave, A rows that arrive, W experts of
// one rank that a token may go to.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/route.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// What the trips of a dispatcher have sent to other ranks in their forward passes.
struct ExpertTraffic {
  int64_t rows = 0;   // one per token and rank
  int64_t slots = 0;  // that these stand for: one per token and expert
};

// Where the tokens of a chunk go.
struct TravelPlan {
  // Of the chunk, over the slots (t, k) that are the first of their token with their rank, sorted by rank:
  // order_R has S entries, inverse_R is -1 for all other slots. weights_TK is there for its size.
  ops::Routing travel;
  at::Tensor place_TK;  // int64, where in (S, W) each slot's number and weight are put; S * W when dropped
  at::Tensor local_expert_TK;  // int32, of its rank; until the departure
  int64_t num_places = 0;      // W
  at::Tensor offsets_N1;       // int32, rows for rank r are [offsets[r], offsets[r + 1])
  at::Tensor to_others;        // scalar, slots whose experts are on other ranks
  // Known after exchange_counts().
  int64_t num_rows = 0;          // S
  std::vector<int64_t> leaving;  // rows for each rank
};

// On the device alone. Tokens [begin, end) of a routing over num_ranks * num_local experts, which differ
// within a token; `rank` is this one's.
TravelPlan plan_travel(const ops::Routing& routing, int64_t begin, int64_t end, int rank, int num_ranks,
                       int64_t num_local);

// State of one trip; nodes of the graph share it.
struct TokenTrip final : torch::CustomClassHolder {
  TokenTrip(Communicator& c, std::shared_ptr<ExpertTraffic> t) : comm(c), traffic(std::move(t)) {}

  Communicator& comm;
  std::shared_ptr<ExpertTraffic> traffic;
  TravelPlan plan;
  std::vector<int64_t> arriving;  // rows from each rank
  int64_t num_arriving = 0;       // A
  int64_t num_local = 0;          // experts of this rank
  int64_t width = 0;              // D
  at::TensorOptions options;      // of the rows

  // Exchanges under way, and what they fill.
  struct Exchange {
    std::vector<Pending> pending;
    at::Tensor rows, numbers, weights;
  };
  Exchange there, back;
  void finish(Exchange& exchange);
};
using Trip = c10::intrusive_ptr<TokenTrip>;

// Tells every rank how many rows of each trip it will get: one small exchange for all. The host waits for the
// device, once.
void exchange_counts(Communicator& comm, const std::vector<Trip>& trips);

struct Ticket {
  at::Tensor tensor;  // (0)
};

struct Arrival {
  at::Tensor x_AD;
  // Over the rank's own experts; weights_TK is (A, W), differentiable.
  ops::Routing routing;
};

// weights_TK: the routing weights of the chunk.
Ticket depart(const Trip& trip, const at::Tensor& x_TD, const at::Tensor& weights_TK);
Arrival arrive(const Trip& trip, const Ticket& there);
Ticket send_back(const Trip& trip, const at::Tensor& y_AD);
at::Tensor collect(const Trip& trip, const Ticket& back);

}  // namespace moebius::parallel
