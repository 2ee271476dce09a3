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
// On a GPU the sizes of the exchange are read on the host, in one copy per apply() for all of its trips
// (trip_plan.h): the host waits for the router of the layer, and the GPU then for the host to queue what
// follows (docs/expert-parallel.md says what that costs). Buffers of fixed size would do without, and hold T
// rows for each of the N ranks, where at most K of them are in use.
//
// Shapes: T tokens, K experts per token, D model width; S rows that leave, A rows that arrive, W experts of
// one rank that a token may go to.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <vector>

#include "ops/route.h"
#include "parallel/communicator.h"
#include "parallel/trip_plan.h"

namespace moebius::parallel {

// State of one trip; nodes of the graph share it.
struct TokenTrip final : torch::CustomClassHolder {
  explicit TokenTrip(Communicator& c) : comm(c) {}

  Communicator& comm;
  TravelPlan plan;
  int64_t num_local = 0;      // experts of this rank
  int64_t width = 0;          // D
  at::TensorOptions options;  // of the rows

  // Exchanges under way, and what they fill.
  struct Exchange {
    std::vector<Pending> pending;
    at::Tensor rows, numbers, weights;
  };
  Exchange there, back;
  void finish(Exchange& exchange);
};
using Trip = c10::intrusive_ptr<TokenTrip>;

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
