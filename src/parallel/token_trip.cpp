// Shapes: see token_trip.h.
#include "parallel/token_trip.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "ops/expert_rows.h"

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor new_ticket(const TokenTrip& trip) {
  return at::empty({0}, trip.options);
}

Trip trip_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<TokenTrip>(ctx->saved_data["trip"].toCapsule());
}

void keep_trip(AutogradContext* ctx, const Trip& trip) {
  ctx->saved_data["trip"] = at::IValue::make_capsule(trip);
}

// Rows of this rank to those that hold their experts (`in` has S rows), or the other way.
Pending start(const TokenTrip& trip, const at::Tensor& out, const at::Tensor& in, bool outward) {
  return outward ? trip.comm.all_to_all(out, in, trip.arriving, trip.plan.leaving)
                 : trip.comm.all_to_all(out, in, trip.plan.leaving, trip.arriving);
}

// (S, width) by (token, rank) from (T, width) by token.
at::Tensor rows_of_tokens(const TokenTrip& trip, const at::Tensor& values_TD) {
  return ops::gather_rows(values_TD, trip.plan.travel.order_R, trip.plan.travel.weights_TK.size(1));
}

// A value per slot put where it travels; `rest` where nothing is.
at::Tensor slots_to_places(const TravelPlan& plan, const at::Tensor& values_TK, const at::Scalar& rest) {
  const int64_t num_places = plan.num_rows * plan.num_places;
  return at::full({num_places + 1}, rest, values_TK.options())
      .scatter_(0, plan.place_TK.view({-1}), values_TK.reshape({-1}))
      .narrow(0, 0, num_places)
      .view({plan.num_rows, plan.num_places});
}

class Depart : public Function<Depart> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& weights_TK,
                            const Trip& trip) {
    keep_trip(ctx, trip);
    const TravelPlan& plan = trip->plan;
    const at::Tensor rows_SD = rows_of_tokens(*trip, x_TD);
    // Numbers of experts and, behind them, the bits of the weights.
    const at::Tensor numbers_S2W = at::cat({slots_to_places(plan, plan.local_expert_TK, trip->num_local),
                                            slots_to_places(plan, weights_TK.detach(), 0.0).view(at::kInt)},
                                           1);
    TokenTrip::Exchange& there = trip->there;
    there.numbers = at::empty({trip->num_arriving, 2 * plan.num_places}, numbers_S2W.options());
    there.rows = at::empty({trip->num_arriving, trip->width}, trip->options);
    there.pending.push_back(start(*trip, there.numbers, numbers_S2W, true));
    there.pending.push_back(start(*trip, there.rows, rows_SD, true));
    trip->plan.local_expert_TK.reset();
    return new_ticket(*trip);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    const Trip trip = trip_of(ctx);
    const TravelPlan& plan = trip->plan;
    trip->finish(trip->there);
    const at::Tensor grads_SD = std::exchange(trip->there.rows, {});
    const at::Tensor weights_SW = std::exchange(trip->there.weights, {});
    variable_list result(3);
    if (ctx->needs_input_grad(0)) result[0] = ops::combine_rows(grads_SD, {}, plan.travel);
    if (ctx->needs_input_grad(1)) {
      const at::Tensor with_spare = at::cat({weights_SW.view({-1}), at::zeros({1}, weights_SW.options())});
      result[1] = with_spare.index_select(0, plan.place_TK.view({-1})).view_as(plan.place_TK);
    }
    return result;
  }
};

class Arrive : public Function<Arrive> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor&, const Trip& trip) {
    keep_trip(ctx, trip);
    trip->finish(trip->there);
    const int64_t num_places = trip->plan.num_places;
    // Moved out: the trip must not own what owns the trip.
    const at::Tensor numbers_A2W = std::exchange(trip->there.numbers, {});
    const at::Tensor experts_AW = numbers_A2W.narrow(1, 0, num_places).contiguous();
    const at::Tensor weights_AW = numbers_A2W.narrow(1, num_places, num_places).contiguous().view(at::kFloat);
    ctx->mark_non_differentiable({experts_AW});
    return {std::exchange(trip->there.rows, {}), weights_AW, experts_AW};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Trip trip = trip_of(ctx);
    const TravelPlan& plan = trip->plan;
    TokenTrip::Exchange& there = trip->there;
    there.rows = at::empty({plan.num_rows, trip->width}, trip->options);
    there.weights = at::empty({plan.num_rows, plan.num_places}, grads[1].options());
    there.pending.push_back(start(*trip, there.weights, grads[1].contiguous(), false));
    there.pending.push_back(start(*trip, there.rows, grads[0].contiguous(), false));
    return {new_ticket(*trip), {}};
  }
};

class SendBack : public Function<SendBack> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y_AD, const Trip& trip) {
    keep_trip(ctx, trip);
    trip->back.rows = at::empty({trip->plan.num_rows, trip->width}, trip->options);
    trip->back.pending.push_back(start(*trip, trip->back.rows, y_AD.contiguous(), false));
    return new_ticket(*trip);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    const Trip trip = trip_of(ctx);
    trip->finish(trip->back);
    return {std::exchange(trip->back.rows, {}), {}};
  }
};

class Collect : public Function<Collect> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor&, const Trip& trip) {
    keep_trip(ctx, trip);
    trip->finish(trip->back);
    return ops::combine_rows(std::exchange(trip->back.rows, {}), {}, trip->plan.travel);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Trip trip = trip_of(ctx);
    const at::Tensor rows_SD = rows_of_tokens(*trip, grads[0].contiguous());
    trip->back.rows = at::empty({trip->num_arriving, trip->width}, trip->options);
    trip->back.pending.push_back(start(*trip, trip->back.rows, rows_SD, true));
    return {new_ticket(*trip), {}};
  }
};

// Arrived rows sorted by this rank's experts.
ops::Routing local_routing(const at::Tensor& weights_AW, const at::Tensor& experts_AW, int64_t num_local) {
  // Places where nothing travelled name the expert after the last; they are cut off as dropped.
  const ops::SlotOrder sorted = ops::sort_by_expert(experts_AW, num_local + 1);
  ops::Routing routing;
  routing.weights_TK = weights_AW;
  routing.experts_TK = experts_AW.clamp_max(num_local - 1);
  routing.offsets_E1 = sorted.offsets_E1.narrow(0, 0, num_local + 1);
  const at::Tensor num_rows = routing.offsets_E1.select(0, num_local);
  routing.inverse_R = at::where(sorted.inverse_R.lt(num_rows), sorted.inverse_R, -1);
  if (experts_AW.is_cpu()) {
    routing.order_R = sorted.order_R.narrow(0, 0, num_rows.item<int32_t>());
  } else {
    // Without reading the number on the host: the whole length, with a tail that is not in use.
    const at::Tensor rows = at::arange(sorted.order_R.size(0), sorted.order_R.options());
    routing.order_R = at::where(rows.lt(num_rows), sorted.order_R, -1);
  }
  return routing;
}

}  // namespace

void TokenTrip::finish(Exchange& exchange) {
  for (Pending& pending : exchange.pending) pending.wait();
  exchange.pending.clear();
}

TravelPlan plan_travel(const ops::Routing& routing, int64_t begin, int64_t end, int rank, int num_ranks,
                       int64_t num_local) {
  const int64_t top_k = routing.weights_TK.size(1);
  const at::Tensor experts_TK = routing.experts_TK.slice(0, begin, end);
  const at::Tensor kept_TK = routing.inverse_R.view({-1, top_k}).slice(0, begin, end).ge(0);
  // Dropped slots go to a rank after the last.
  const at::Tensor rank_TK =
      at::where(kept_TK, experts_TK.floor_divide(num_local), at::Scalar(num_ranks)).to(at::kInt);
  const at::Tensor same_TKK =
      rank_TK.unsqueeze(2).eq(rank_TK.unsqueeze(1)).logical_and_(kept_TK.unsqueeze(2));
  const at::Tensor earlier_TK = same_TKK.tril(-1).sum(2);  // slots of the token with the same rank, before it
  const at::Tensor leads_TK = kept_TK.logical_and(earlier_TK.eq(0));
  const ops::SlotOrder sorted = ops::sort_by_expert(
      at::where(leads_TK, rank_TK, at::Scalar(num_ranks)).to(at::kInt).contiguous(), num_ranks + 1);
  const at::Tensor inverse_TK = at::where(leads_TK, sorted.inverse_R.view_as(leads_TK), at::Scalar(-1));

  TravelPlan plan;
  plan.num_places = std::min(top_k, num_local);
  plan.offsets_N1 = sorted.offsets_E1.narrow(0, 0, num_ranks + 1);
  plan.to_others = kept_TK.logical_and(rank_TK.ne(rank)).sum();
  plan.travel.weights_TK = routing.weights_TK.detach().slice(0, begin, end);
  plan.travel.order_R = sorted.order_R;
  plan.travel.inverse_R = inverse_TK.to(at::kInt).contiguous().view({-1});
  plan.local_expert_TK = experts_TK.remainder(num_local);
  // The row of a slot is that of the token's leading slot with the same rank.
  const at::Tensor row_TK =
      at::where(same_TKK, inverse_TK.unsqueeze(1), at::Scalar(-1)).amax(2).to(at::kLong);
  const at::Tensor nowhere = plan.offsets_N1.select(0, num_ranks).to(at::kLong) * plan.num_places;
  plan.place_TK = at::where(kept_TK, row_TK * plan.num_places + earlier_TK, nowhere).contiguous();
  return plan;
}

void exchange_counts(Communicator& comm, const std::vector<Trip>& trips) {
  const auto num_trips = static_cast<int64_t>(trips.size());
  const auto num_ranks = static_cast<int64_t>(comm.size());
  MOEBIUS_CHECK(!trips.empty());
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> leaving_CN, to_others_C;
  for (const Trip& trip : trips) {
    const at::Tensor& offsets_N1 = trip->plan.offsets_N1;
    leaving_CN.push_back(
        (offsets_N1.narrow(0, 1, num_ranks) - offsets_N1.narrow(0, 0, num_ranks)).to(at::kLong));
    to_others_C.push_back(trip->plan.to_others.to(at::kLong));
  }
  const at::Tensor leaving_NC = at::stack(leaving_CN, 1).contiguous();
  const at::Tensor arriving_NC = at::empty_like(leaving_NC);
  const std::vector<int64_t> one_each(static_cast<size_t>(num_ranks), 1);
  comm.all_to_all(arriving_NC, leaving_NC, one_each, one_each).wait();
  // All that the host must know, in one copy.
  const at::Tensor known =
      at::cat({leaving_NC.view({-1}), arriving_NC.view({-1}), at::stack(to_others_C)}).cpu();
  const int64_t* const leaving = known.const_data_ptr<int64_t>();
  const int64_t* const arriving = leaving + num_ranks * num_trips;
  const int64_t* const to_others = arriving + num_ranks * num_trips;
  for (int64_t c = 0; c < num_trips; ++c) {
    TokenTrip& trip = *trips[static_cast<size_t>(c)];
    TravelPlan& plan = trip.plan;
    for (int64_t other = 0; other < num_ranks; ++other) {
      plan.leaving.push_back(leaving[other * num_trips + c]);
      trip.arriving.push_back(arriving[other * num_trips + c]);
    }
    plan.num_rows = std::accumulate(plan.leaving.begin(), plan.leaving.end(), int64_t{0});
    plan.travel.order_R = plan.travel.order_R.narrow(0, 0, plan.num_rows);
    trip.num_arriving = std::accumulate(trip.arriving.begin(), trip.arriving.end(), int64_t{0});
    trip.traffic->rows += plan.num_rows - plan.leaving[static_cast<size_t>(comm.rank())];
    trip.traffic->slots += to_others[c];
  }
}

Ticket depart(const Trip& trip, const at::Tensor& x_TD, const at::Tensor& weights_TK) {
  return {Depart::apply(x_TD, weights_TK, trip)};
}

Arrival arrive(const Trip& trip, const Ticket& there) {
  const variable_list out = Arrive::apply(there.tensor, trip);
  return {out[0], local_routing(out[1], out[2], trip->num_local)};
}

Ticket send_back(const Trip& trip, const at::Tensor& y_AD) {
  return {SendBack::apply(y_AD, trip)};
}

at::Tensor collect(const Trip& trip, const Ticket& back) {
  return Collect::apply(back.tensor, trip);
}

}  // namespace moebius::parallel
