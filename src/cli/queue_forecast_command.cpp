// `moebius queue forecast`: what the queue expects of the grid, with 90 % intervals, and how often they held.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "cli/queue_command.h"
#include "cli/queue_folder.h"
#include "energy/carbon/feed.h"

namespace moebius::cli {
namespace {

namespace carbon = energy::carbon;

constexpr double kNinety = 1.6449;  // of a normal distribution, both sides

struct ForecastArguments {
  std::string source, forecast, url, grid_time, scope = "lifecycle";
  int64_t hours = 24, check_days = 0;
  bool json = false;
};

carbon::Scope scope_of(const ForecastArguments& a) {
  return a.scope == "direct" ? carbon::Scope::kDirect : carbon::Scope::kLifecycle;
}

// Of the recorded values of the last days, the share inside the interval made 1, 6 and 24 h before.
void check_intervals(const ForecastArguments& a) {
  if (carbon::is_provider_name(a.source))
    throw_user_error("--check-days needs a recorded grid, and --carbon ", a.source, " is a provider");
  const carbon::Trace trace = carbon::read_trace(a.source, {.scope = scope_of(a)});
  const auto forecaster = carbon::make_forecaster("own", {trace.values, trace.step_s, trace.start_unix_s});
  const auto count = static_cast<int64_t>(trace.values.size());
  const int64_t hour = 3600 / trace.step_s,
                first = std::max<int64_t>(count - a.check_days * 24 * hour, 15 * 24 * hour);
  if (first + 25 * hour > count)
    throw_user_error("the carbon trace of ", trace.zone, " holds ", count / hour / 24,
                     " days; intervals need 15 before the first that is checked");
  constexpr int64_t kAhead[] = {1, 6, 24};
  int64_t inside[3] = {}, checked[3] = {};
  double width[3] = {};
  for (int64_t known = first; known < count; ++known) {
    const carbon::Forecast forecast = forecaster->predict(known, 24 * hour);
    for (int i = 0; i < 3; ++i) {
      const auto ahead = static_cast<size_t>(kAhead[i] * hour - 1);
      if (known + static_cast<int64_t>(ahead) >= count || forecast.deviations.empty()) continue;
      const double half = kNinety * forecast.deviations[ahead];
      inside[i] +=
          std::abs(trace.values[static_cast<size_t>(known) + ahead] - forecast.values[ahead]) <= half;
      width[i] += 2 * half;
      ++checked[i];
    }
  }
  std::cout << trace.zone << ", " << trace.signal
            << " intensity, recorded; 90 % intervals of own over the last " << (count - first) / hour / 24
            << " days\n";
  for (int i = 0; i < 3; ++i)
    std::cout << fmt::format("{:>3} h ahead: {:.1f} % inside, {:.0f} g/kWh wide on average\n", kAhead[i],
                             100.0 * static_cast<double>(inside[i]) / static_cast<double>(checked[i]),
                             width[i] / static_cast<double>(checked[i]));
}

void run_forecast(const ForecastArguments& a) {
  if (a.check_days > 0) return check_intervals(a);
  carbon::FeedOptions options;
  options.use_provider_forecast = a.forecast.empty() || a.forecast == "provider";
  if (!options.use_provider_forecast) options.forecaster = carbon::canonical_forecaster_name(a.forecast);
  if (options.forecaster == "oracle") throw_user_error("--forecast oracle needs the future; use own");
  carbon::Feed feed(carbon::make_provider(a.source, make_curl_client(), {.url = a.url, .scope = scope_of(a)}),
                    options);
  const double now_s =
      a.grid_time.empty() ? system_clock().unix_seconds() : parse_time(a.grid_time, "--grid-time");
  feed.refresh(now_s);
  const auto view = feed.view(now_s, now_s + 3600.0 * static_cast<double>(a.hours));
  if (!view) {
    throw_user_error("nothing is known of the grid: ",
                     feed.last_error().empty() ? feed.name() + " has no reading before " + iso_time(now_s)
                                               : feed.last_error());
  }
  nlohmann::ordered_json json = {{"source", feed.name()},
                                 {"signal", feed.signal()},
                                 {"unit", "gCO2eq/kWh"},
                                 {"stale", feed.is_stale(now_s)},
                                 {"steps", nlohmann::ordered_json::array()}};
  if (!a.json)
    std::cout << feed.name() << ", " << feed.signal() << " intensity, g/kWh"
              << (feed.is_stale(now_s) ? ", stale" : "")
              << (view->deviations.empty() ? "" : "; 90 % interval") << "\n";
  for (size_t i = 0; i < view->values.size(); ++i) {
    const double begin = static_cast<double>(view->begin_unix_s + static_cast<int64_t>(i) * view->step_s);
    if (begin >= now_s + 3600.0 * static_cast<double>(a.hours)) break;
    const double value = view->values[i];
    const double half = view->deviations.empty() ? NAN : kNinety * view->deviations[i];
    if (a.json) {
      nlohmann::ordered_json step = {{"begin", iso_time(begin)}, {"value", value}};
      if (std::isfinite(half)) step["low"] = std::max(0.0, value - half), step["high"] = value + half;
      json["steps"].push_back(step);
    } else if (std::isfinite(half)) {
      std::cout << fmt::format("{}  {:>6.0f}  {:>6.0f} to {:.0f}\n", iso_time(begin), value,
                               std::max(0.0, value - half), value + half);
    } else {
      std::cout << fmt::format("{}  {:>6.0f}\n", iso_time(begin), value);
    }
  }
  if (a.json) std::cout << json.dump(2) << "\n";
}

}  // namespace

void add_queue_forecast_command(CLI::App& parent) {
  CLI::App* command =
      parent.add_subcommand("forecast", "What the queue expects of the grid, with 90 % intervals");
  auto a = std::make_shared<ForecastArguments>();
  command
      ->add_option("--carbon", a->source,
                   "The grid: electricitymaps:ZONE, gb, watttime:REGION, or a CSV of its intensity")
      ->required();
  command->add_option(
      "--forecast", a->forecast,
      "provider, persistence, seven_day or own (default: the provider's where it has one, else own)");
  command->add_option("--scope", a->scope, "Emissions of a CSV that count: lifecycle or direct")
      ->check(CLI::IsMember({"lifecycle", "direct"}))
      ->capture_default_str();
  command->add_option("--carbon-url", a->url, "Server to ask instead of the provider's own");
  command->add_option("--grid-time", a->grid_time, "Time (UTC) to forecast from (default: now)");
  command->add_option("--hours", a->hours, "How far")
      ->check(CLI::Range(int64_t{1}, int64_t{240}))
      ->capture_default_str();
  command
      ->add_option("--check-days", a->check_days,
                   "Instead: how often the intervals held over the last days of a recorded grid")
      ->check(CLI::Range(int64_t{1}, int64_t{3660}));
  command->add_flag("--json", a->json, "Print JSON");
  command->callback([a] { run_forecast(*a); });
}

}  // namespace moebius::cli
