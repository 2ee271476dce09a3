#include "cli/moe_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/number_checks.h"
#include "moe/balance/forecast_score.h"
#include "moe/balance/load_log.h"
#include "moe/balance/placement.h"

namespace moebius::cli {
namespace {

using nlohmann::ordered_json;

struct Range {
  int64_t from = 0, to = std::numeric_limits<int64_t>::max();
  bool contains(int64_t step) const { return step >= from && step <= to; }
};

struct ForecastArguments {
  std::string log;
  std::vector<int64_t> horizons = {100, 1000, 2000};
  std::vector<std::string> predictors = moe::predictor_specs();
  Range steps;
  int64_t smooth = 1, top_k = 0;
  bool json = false;
};

struct MeanError {
  moe::ForecastError sum;
  int64_t count = 0;
  void add(const moe::ForecastError& error) {
    sum.share += error.share;
    sum.largest += error.largest;
    ++count;
  }
  double share() const { return sum.share / static_cast<double>(count); }
  double largest() const { return sum.largest / static_cast<double>(count); }
};

MeanError replay(const moe::LoadLog& log, const std::string& predictor, int64_t horizon, const Range& range,
                 int64_t smooth) {
  MeanError mean;
  for (size_t layer = 0; layer < log.layers.size(); ++layer) {
    moe::ForecastScore score(predictor, log.num_experts, horizon, smooth);
    for (const moe::LoadLog::Step& step : log.steps) {
      const auto error = score.observe(step.shares[layer]);
      if (error && range.contains(step.step)) mean.add(*error);
    }
  }
  return mean;
}

// Mean error of a forecast that is right, over the steps of the range; 0 when the log has no tokens.
double floor_of(const moe::LoadLog& log, const ForecastArguments& arguments) {
  double sum = 0;
  int64_t count = 0;
  for (const moe::LoadLog::Step& step : log.steps) {
    if (step.tokens == 0 || !arguments.steps.contains(step.step)) continue;
    for (const auto& shares : step.shares) {
      sum +=
          moe::sampling_error(shares, static_cast<double>(step.tokens * arguments.top_k * arguments.smooth));
      ++count;
    }
  }
  return count > 0 ? sum / static_cast<double>(count) : 0;
}

void run_forecast(const ForecastArguments& arguments) {
  const moe::LoadLog log = moe::read_load_log(arguments.log);
  ordered_json json = {{"log", arguments.log},       {"layers", log.layers.size()},
                       {"experts", log.num_experts}, {"steps", log.steps.size()},
                       {"smooth", arguments.smooth}, {"forecasts", ordered_json::array()}};
  const double floor = arguments.top_k > 0 ? floor_of(log, arguments) : 0;
  if (floor > 0) json["sampling_error"] = floor;
  std::ostringstream table;
  table << log.steps.size() << " steps, " << log.layers.size() << " layers of " << log.num_experts
        << " experts; error of the load share in %, of the largest share in brackets\npredictor   ";
  char cell[64];
  for (const int64_t horizon : arguments.horizons) {
    std::snprintf(cell, sizeof cell, "%17s", concat("+", horizon).c_str());
    table << cell;
  }
  table << "\n";
  for (const std::string& predictor : arguments.predictors) {
    std::snprintf(cell, sizeof cell, "%-12s", predictor.c_str());
    table << cell;
    for (const int64_t horizon : arguments.horizons) {
      const MeanError error = replay(log, predictor, horizon, arguments.steps, arguments.smooth);
      if (error.count == 0) {
        throw_user_error("no forecast ", horizon,
                         " steps ahead falls due in the steps asked for; the log has the steps ",
                         log.steps.front().step, " to ", log.steps.back().step,
                         "; give a smaller --horizons or a wider range");
      }
      json["forecasts"].push_back({{"predictor", predictor},
                                   {"horizon", horizon},
                                   {"share_error", error.share()},
                                   {"largest_error", error.largest()},
                                   {"judged", error.count}});
      std::snprintf(cell, sizeof cell, "%8.2f (%6.2f)", 100 * error.share(), 100 * error.largest());
      table << cell;
    }
    table << "\n";
  }
  if (floor > 0) {
    std::snprintf(cell, sizeof cell, "%.2f", 100 * floor);
    table << "chance alone, if tokens were dealt out independently: " << cell << "\n";
  }
  std::cout << (arguments.json ? json.dump(2) + "\n" : table.str());
}

struct PlaceArguments {
  std::string log, predictor = "mean:256";
  int64_t ranks = 4, slots = 0, every = 500, max_moves = -1;
  double good_enough = 1.05;
  Range steps;
  bool json = false;
};

struct PlaceResult {
  double fixed = 0, planned = 0, hindsight = 0;
  int64_t moves = 0, plans = 0;
};

// Plans every N steps from the forecast of one layer, and counts what ranks would have had to do since.
void place_layer(const moe::LoadLog& log, size_t layer, const PlaceArguments& arguments, PlaceResult& result,
                 int64_t& judged) {
  const auto predictor =
      moe::make_predictor(arguments.predictor, log.num_experts, std::max<int64_t>(arguments.every / 2, 1));
  const moe::PlacementOptions options{arguments.slots, arguments.good_enough, arguments.max_moves};
  const moe::Placement fixed = moe::contiguous_placement(log.num_experts, arguments.ranks);
  moe::Placement current = fixed;
  int64_t since = 0;
  for (const moe::LoadLog::Step& step : log.steps) {
    const std::vector<double>& shares = step.shares[layer];
    if (arguments.steps.contains(step.step)) {
      result.fixed += fixed.imbalance(shares);
      result.planned += current.imbalance(shares);
      result.hindsight += moe::plan_placement(current, shares, options).imbalance(shares);
      ++judged;
    }
    predictor->observe(shares);
    if (++since < arguments.every) continue;
    since = 0;
    const moe::Placement next = moe::plan_placement(current, predictor->predict(), options);
    result.moves += moe::num_moves(current, next);
    ++result.plans;
    current = next;
  }
}

void run_place(PlaceArguments arguments) {
  const moe::LoadLog log = moe::read_load_log(arguments.log);
  if (arguments.ranks < 1 || log.num_experts % arguments.ranks != 0)
    throw_user_error("--ranks is ", arguments.ranks, ", but the ", log.num_experts,
                     " experts of the log must divide among them; give a divisor");
  const int64_t least = log.num_experts / arguments.ranks;
  if (arguments.slots == 0) arguments.slots = std::min(least + 1, log.num_experts);
  if (arguments.slots < least || arguments.slots > log.num_experts)
    throw_user_error("--slots is ", arguments.slots, "; a rank needs room for ", least, " to ",
                     log.num_experts, " experts");
  PlaceResult result;
  int64_t judged = 0;
  for (size_t layer = 0; layer < log.layers.size(); ++layer)
    place_layer(log, layer, arguments, result, judged);
  if (judged == 0) throw_user_error("the log has no step in the range asked for");
  const auto count = static_cast<double>(judged);
  const double moves =
      result.plans > 0 ? static_cast<double>(result.moves) / static_cast<double>(result.plans) : 0;
  if (arguments.json) {
    std::cout << ordered_json{{"ranks", arguments.ranks},
                              {"slots_per_rank", arguments.slots},
                              {"every", arguments.every},
                              {"imbalance_contiguous", result.fixed / count},
                              {"imbalance_planned", result.planned / count},
                              {"imbalance_hindsight", result.hindsight / count},
                              {"moves_per_plan", moves}}
                     .dump(2)
              << "\n";
    return;
  }
  char text[400];
  std::snprintf(text, sizeof text,
                "largest rank load / mean, over %lld steps and layers:\n"
                "each expert once, in blocks   %.4f\n"
                "planned every %lld steps        %.4f   (%.2f experts sent per plan)\n"
                "planned anew for each step    %.4f   (knowing its load)\n",
                static_cast<long long>(judged), result.fixed / count, static_cast<long long>(arguments.every),
                result.planned / count, moves, result.hindsight / count);
  std::cout << text;
}

void add_range(CLI::App& command, Range& range) {
  command.add_option("--from", range.from, "First step that counts (the ones before are learnt from)");
  command.add_option("--to", range.to, "Last step that counts");
}

}  // namespace

void add_moe_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("moe", "Forecast expert load and plan placements from the log of a run");
  command->require_subcommand(1);

  auto forecast = std::make_shared<ForecastArguments>();
  CLI::App* forecasts = command->add_subcommand("forecast", "Replay a log through predictors and judge them");
  forecasts->add_option("log", forecast->log, "metrics.jsonl of a run, plain or .gz")->required();
  forecasts->add_option("--horizons", forecast->horizons, "Steps ahead")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1000000}));
  forecasts
      ->add_option("--predictors", forecast->predictors,
                   "last, mean:STEPS, exp:HALF_LIFE, ar:ORDER:STEPS, linear")
      ->delimiter(',')
      ->capture_default_str();
  forecasts
      ->add_option("--smooth", forecast->smooth,
                   "Judge by the mean share of this many steps from the horizon on")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1000000}));
  forecasts
      ->add_option("--top-k", forecast->top_k, "Experts per token: says what chance alone makes of the error")
      ->check(above_zero());
  add_range(*forecasts, forecast->steps);
  forecasts->add_flag("--json", forecast->json, "Print JSON");
  forecasts->callback([forecast] { run_forecast(*forecast); });

  auto place = std::make_shared<PlaceArguments>();
  CLI::App* places =
      command->add_subcommand("place", "Replay a log through plans of replicas and places of experts");
  places->add_option("log", place->log, "metrics.jsonl of a run, plain or .gz")->required();
  places->add_option("--ranks", place->ranks, "Ranks that share the experts")->capture_default_str();
  places->add_option("--slots", place->slots,
                     "Experts that a rank has room for (default: one more than it needs)");
  places->add_option("--every", place->every, "Steps between plans")
      ->capture_default_str()
      ->check(above_zero());
  places->add_option("--predictor", place->predictor, "What plans believe of the load")
      ->capture_default_str();
  places->add_option("--good-enough", place->good_enough, "Imbalance that is left alone")
      ->capture_default_str();
  places->add_option("--max-moves", place->max_moves,
                     "Experts sent per plan from which on no pair changes places");
  add_range(*places, place->steps);
  places->add_flag("--json", place->json, "Print JSON");
  places->callback([place] { run_place(*place); });
}

}  // namespace moebius::cli
