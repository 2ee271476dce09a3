// Shapes: T tokens, D model width, E experts, K experts per token.
#include "parallel/expert_dispatcher.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "parallel/turns.h"

namespace moebius::parallel {

ExpertDispatcher::ExpertDispatcher(Communicator& ep, int64_t num_experts, int64_t num_chunks,
                                   std::shared_ptr<const moe::TokenDispatcher> inner, Communicator* sizes)
    : ep_(ep),
      sizes_(sizes != nullptr ? *sizes : ep),
      num_experts_(num_experts),
      num_local_(num_experts / ep.size()),
      num_chunks_(std::min(num_chunks, most_chunks(ep.size()))),
      is_last_(inner == nullptr),
      inner_(inner != nullptr ? std::move(inner) : std::make_shared<moe::LocalDispatcher>()) {
  MOEBIUS_CHECK(num_experts > 0 && num_experts % ep.size() == 0, num_experts, " experts on ", ep.size(),
                " ranks of axis ", ep.axis());
  MOEBIUS_CHECK_GE(num_chunks, 1);
}

std::vector<Trip> ExpertDispatcher::plan(const at::Tensor& x_TD, const ops::Routing& routing,
                                         const std::vector<int64_t>& sizes) const {
  std::vector<Trip> trips;
  for (TravelPlan& plan : plan_travel(sizes_, routing, sizes, num_local_, *traffic_)) {
    Trip trip = c10::make_intrusive<TokenTrip>(ep_);
    trip->plan = std::move(plan);
    trip->num_local = num_local_;
    trip->width = x_TD.size(1);
    trip->options = x_TD.options().requires_grad(false);
    trips.push_back(std::move(trip));
  }
  return trips;
}

at::Tensor ExpertDispatcher::apply(const at::Tensor& x_TD, const ops::Routing& routing,
                                   const moe::ExpertWeights& experts, bool recompute,
                                   const std::function<void()>& meanwhile) const {
  const int64_t num_tokens = x_TD.size(0);
  if (is_last_) MOEBIUS_CHECK_EQ(experts.gate_up_E2FD.size(0), num_local_, "experts of rank ", ep_.rank());
  MOEBIUS_CHECK_EQ(routing.offsets_E1.size(0), num_experts_ + 1);
  MOEBIUS_CHECK_EQ(routing.weights_TK.size(0), num_tokens);
  MOEBIUS_CHECK(routing.experts_TK.sizes() == routing.weights_TK.sizes());

  // As many chunks on every rank, whatever its number of tokens.
  std::vector<int64_t> sizes;
  for (int64_t c = 0; c < num_chunks_; ++c)
    sizes.push_back((c + 1) * num_tokens / num_chunks_ - c * num_tokens / num_chunks_);
  const std::vector<Trip> trips = plan(x_TD, routing, sizes);
  const std::vector<at::Tensor> x = x_TD.contiguous().split_with_sizes(sizes),
                                weights = routing.weights_TK.contiguous().split_with_sizes(sizes);

  // Under way at any time: the rows of the next chunk, and the results of the one before.
  const size_t count = trips.size();
  std::vector<Ticket> there(count), back(count);
  std::vector<at::Tensor> y(count);
  there[0] = depart(trips[0], x[0], weights[0]);
  meanwhile();
  pass_turn();
  for (size_t c = 0; c < count; ++c) {
    if (c + 1 < count) there[c + 1] = depart(trips[c + 1], x[c + 1], weights[c + 1]);
    const Arrival arrival = arrive(trips[c], there[c]);
    back[c] = send_back(trips[c], inner_->apply(arrival.x_AD, arrival.routing, experts, recompute, [] {}));
    if (c > 0) y[c - 1] = collect(trips[c - 1], back[c - 1]);
  }
  pass_turn();
  y[count - 1] = collect(trips[count - 1], back[count - 1]);
  return count == 1 ? y[0] : at::cat(y);
}

}  // namespace moebius::parallel
