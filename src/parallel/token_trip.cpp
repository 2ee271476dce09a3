// Shapes: see token_trip.h.
#include "parallel/token_trip.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

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
  return outward ? trip.comm.all_to_all(out, in, trip.plan.arriving, trip.plan.leaving)
                 : trip.comm.all_to_all(out, in, trip.plan.leaving, trip.plan.arriving);
}

// (S, width) by (token, rank) from (T, width) by token.
at::Tensor rows_of_tokens(const TokenTrip& trip, const at::Tensor& values_TD) {
  return ops::gather_rows(values_TD, trip.plan.travel.order_R, trip.plan.travel.weights_TK.size(1));
}

// (S, 2 W): numbers of experts, `num_local` where nothing travels, and behind them the bits of the weights.
at::Tensor numbers_of_slots(const TravelPlan& plan, const at::Tensor& weights_TK, int64_t num_local) {
  const int64_t count = plan.num_rows * 2 * plan.num_places, spare = plan.num_spare();
  const at::Tensor places = plan.place_TK.reshape({-1});
  const at::Tensor all = at::full({spare + count}, num_local, plan.local_expert_TK.options());
  all.scatter_(0, places, plan.local_expert_TK.reshape({-1}));
  all.narrow(0, plan.num_places, spare + count - plan.num_places)
      .scatter_(0, places, weights_TK.detach().reshape({-1}).view(at::kInt));
  return all.narrow(0, spare, count).view({plan.num_rows, 2 * plan.num_places});
}

class Depart : public Function<Depart> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& weights_TK,
                            const Trip& trip) {
    keep_trip(ctx, trip);
    const TravelPlan& plan = trip->plan;
    const at::Tensor rows_SD = rows_of_tokens(*trip, x_TD);
    const at::Tensor numbers_S2W = numbers_of_slots(plan, weights_TK, trip->num_local);
    TokenTrip::Exchange& there = trip->there;
    there.numbers = at::empty({trip->plan.num_arriving, 2 * plan.num_places}, numbers_S2W.options());
    there.rows = at::empty({trip->plan.num_arriving, trip->width}, trip->options);
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
      // As the numbers lie, with zeros for dropped slots.
      const int64_t count = 2 * weights_SW.numel(), spare = plan.num_spare();
      const at::Tensor all = at::zeros({spare + count}, weights_SW.options());
      all.narrow(0, spare, count).view({plan.num_rows, 2, plan.num_places}).select(1, 0).copy_(weights_SW);
      result[1] = all.index_select(0, plan.place_TK.reshape({-1})).view(plan.place_TK.sizes());
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
    trip->back.rows = at::empty({trip->plan.num_arriving, trip->width}, trip->options);
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
