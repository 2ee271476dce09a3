// Shapes: see trip_plan.h.
#include "parallel/trip_plan.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/check.h"

namespace moebius::parallel {
namespace {

constexpr int64_t kMostKeys = 1024;  // of a sort (kernels/api/route.h)

// Sizes of each chunk and rank, from what both sides know, in one copy to the host.
void read_sizes(const at::Tensor& leaving_NC, const at::Tensor& arriving_NC, const ops::Routing& routing,
                int64_t num_local, int rank, std::vector<TravelPlan>& plans, ExpertTraffic& traffic) {
  const auto num_chunks = static_cast<int64_t>(plans.size());
  const int64_t num_ranks = leaving_NC.size(0);
  const at::Tensor known = at::cat({leaving_NC.view({-1}), arriving_NC.view({-1}), routing.offsets_E1}).cpu();
  const int32_t* const leaving = known.const_data_ptr<int32_t>();
  const int32_t* const arriving = leaving + num_ranks * num_chunks;
  const int32_t* const offsets = arriving + num_ranks * num_chunks;
  for (int64_t c = 0; c < num_chunks; ++c) {
    TravelPlan& plan = plans[static_cast<size_t>(c)];
    for (int64_t other = 0; other < num_ranks; ++other) {
      plan.leaving.push_back(leaving[other * num_chunks + c]);
      plan.arriving.push_back(arriving[other * num_chunks + c]);
      plan.num_rows += plan.leaving.back();
      plan.num_arriving += plan.arriving.back();
    }
    traffic.rows += plan.num_rows - plan.leaving[static_cast<size_t>(rank)];
  }
  traffic.slots +=
      offsets[num_ranks * num_local] - (offsets[(rank + 1) * num_local] - offsets[rank * num_local]);
}

}  // namespace

int64_t most_chunks(int num_ranks) {
  return std::max<int64_t>((kMostKeys - 1) / num_ranks, 1);
}

std::vector<TravelPlan> plan_travel(Communicator& comm, const ops::Routing& routing,
                                    const std::vector<int64_t>& sizes, int64_t num_local,
                                    ExpertTraffic& traffic) {
  const at::NoGradGuard no_grad;
  const int64_t top_k = routing.weights_TK.size(1), num_places = std::min(top_k, num_local);
  const int64_t num_ranks = comm.size(), num_chunks = static_cast<int64_t>(sizes.size());
  const int64_t num_keys = num_chunks * num_ranks;
  MOEBIUS_CHECK(num_chunks >= 1 && num_chunks <= most_chunks(comm.size()), num_chunks, " chunks");

  const at::Tensor kept_TK = routing.inverse_R.view({-1, top_k}).ge(0);
  // Dropped slots go to a rank after the last.
  const at::Tensor rank_TK =
      at::where(kept_TK, routing.experts_TK.floor_divide(num_local), at::Scalar(num_ranks)).to(at::kInt);
  const at::Tensor same_TKK = rank_TK.unsqueeze(2).eq(rank_TK.unsqueeze(1));
  const at::Tensor earlier_TK = same_TKK.tril(-1).sum(2);  // slots of the token with the same rank, before it
  const at::Tensor leads_TK = earlier_TK.eq(0).logical_and_(kept_TK);
  at::Tensor key_TK = rank_TK;
  for (int64_t c = 1, begin = sizes[0]; c < num_chunks; begin += sizes[static_cast<size_t>(c++)]) {
    if (c == 1) key_TK = rank_TK.clone();
    key_TK.narrow(0, begin, sizes[static_cast<size_t>(c)]).add_(c * num_ranks);
  }
  const ops::SlotOrder sorted = ops::sort_by_expert(
      at::where(leads_TK, key_TK, at::Scalar(num_keys)).to(at::kInt).contiguous(), num_keys + 1);
  const at::Tensor leaving_NC =
      (sorted.offsets_E1.narrow(0, 1, num_keys) - sorted.offsets_E1.narrow(0, 0, num_keys))
          .view({num_chunks, num_ranks})
          .t()
          .contiguous();
  const at::Tensor arriving_NC = at::empty_like(leaving_NC);
  const std::vector<int64_t> one_each(static_cast<size_t>(num_ranks), 1);
  Pending counting = comm.all_to_all(arriving_NC, leaving_NC, one_each, one_each);

  // Meanwhile. The row of a slot is that of the token's leading slot with the same rank.
  std::vector<TravelPlan> plans(sizes.size());
  for (TravelPlan& plan : plans) plan.num_places = num_places;
  const at::Tensor inverse_TK =
      at::where(leads_TK, sorted.inverse_R.view_as(leads_TK), at::Scalar(-1)).to(at::kInt);
  const at::Tensor row_TK = at::where(same_TKK, inverse_TK.unsqueeze(1), at::Scalar(-1)).amax(2);
  const at::Tensor place_TK =
      at::where(kept_TK, row_TK.mul(2 * num_places).add(earlier_TK).add_(plans[0].num_spare()), at::Scalar(0))
          .to(at::kLong);
  const at::Tensor local_expert_TK = routing.experts_TK.remainder(num_local);

  counting.wait();
  read_sizes(leaving_NC, arriving_NC, routing, num_local, comm.rank(), plans, traffic);
  int64_t begin = 0, first_row = 0;
  for (size_t c = 0; c < plans.size(); ++c) {
    TravelPlan& plan = plans[c];
    const int64_t end = begin + sizes[c];
    plan.travel.weights_TK = routing.weights_TK.detach().slice(0, begin, end);
    plan.travel.order_R = sorted.order_R.narrow(0, first_row, plan.num_rows);
    plan.travel.inverse_R = inverse_TK.slice(0, begin, end).reshape({-1});
    plan.place_TK = place_TK.slice(0, begin, end);
    plan.local_expert_TK = local_expert_TK.slice(0, begin, end);
    if (begin > 0) plan.travel.order_R = plan.travel.order_R.sub(begin * top_k);
    if (first_row > 0) {
      plan.travel.inverse_R = plan.travel.inverse_R.sub(first_row).clamp_min_(-1);
      plan.place_TK = plan.place_TK.sub(first_row * 2 * num_places).clamp_min_(0);
    }
    begin = end;
    first_row += plan.num_rows;
  }
  return plans;
}

}  // namespace moebius::parallel
