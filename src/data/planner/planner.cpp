#include "data/planner/planner.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"

namespace moebius::data {

void PlanShape::check() const {
  MOEBIUS_CHECK_GE(context, 1);
  MOEBIUS_CHECK_GE(rows, 1);
  MOEBIUS_CHECK_GE(micro_batches, 1);
  MOEBIUS_CHECK_GE(ranks, 1);
  MOEBIUS_CHECK_GE(window, 1);
  MOEBIUS_CHECK_GE(max_delay, 0);
}

Planner::Planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape, const CostModel& cost)
    : stream_(std::move(stream)), shape_(shape), cost_(cost) {
  shape_.check();
}

bool Planner::next(StepPlan& out) {
  out.step = step_;
  out.micro_batches.resize(shape_.micro_batches_per_step());
  for (MicroBatchPlan& each : out.micro_batches) each.clear();
  plan(out.micro_batches);
  const auto has_pieces = [](const MicroBatchPlan& each) { return !each.pieces.empty(); };
  if (std::none_of(out.micro_batches.begin(), out.micro_batches.end(), has_pieces)) return false;
  ++step_;
  return true;
}

std::string Planner::state() const {
  nlohmann::json json;
  json["step"] = step_;
  json["stream"] = stream_->position();
  json["numbers"] = numbers();
  auto& waiting = json["pending"] = nlohmann::json::array();
  for (const Pending& each : pending()) {
    waiting.push_back({each.piece.source, each.piece.document, each.piece.begin, each.piece.length,
                       each.arrival, each.entered});
  }
  return json.dump();
}

void Planner::restore(const std::string& state) {
  MOEBIUS_CHECK_EQ(step_, 0);
  const auto json = nlohmann::json::parse(state);
  step_ = json.at("step");
  stream_->seek(json.at("stream"));
  std::vector<Pending> waiting;
  for (const auto& each : json.at("pending")) {
    waiting.push_back({{each[0], each[1], each[2], each[3]}, each[4], each[5]});
  }
  resume(waiting, json.at("numbers"));
}

std::unique_ptr<Planner> make_planner(const config::Batching& batching,
                                      std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                      const CostModel& cost) {
  MOEBIUS_CHECK(batching.kind != config::BatchingKind::window);
  if (batching.kind == config::BatchingKind::pack) return make_pack_planner(std::move(stream), shape, cost);
  if (batching.kind == config::BatchingKind::balanced) {
    return make_balanced_planner(std::move(stream), shape, cost);
  }
  return make_padded_planner(batching, std::move(stream), shape, cost);
}

}  // namespace moebius::data
