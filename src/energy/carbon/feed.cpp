#include "energy/carbon/feed.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace moebius::energy::carbon {
namespace {

constexpr int64_t kMaxFilledSteps = 3;
constexpr double kSmallestGrams = 1e-3;  // marginal intensity may be 0; forecasters divide by it
constexpr double kMaxSkewSeconds = 300;

int64_t floor_to(double time_s, int64_t step_s) {
  return static_cast<int64_t>(std::floor(time_s / static_cast<double>(step_s))) * step_s;
}

}  // namespace

Feed::Feed(std::unique_ptr<Provider> provider, const FeedOptions& options)
    : provider_(std::move(provider)), options_(options) {
  if (!options_.cache.empty()) load_cache();
}

bool Feed::refresh(double now_s) {
  if (now_s < next_try_s_) return false;
  const auto history = provider_->history(now_s);
  if (const auto* refused = std::get_if<Refused>(&history)) {
    fail(*refused, now_s);
    return false;
  }
  bool is_new = take_history(std::get<Answer>(history), now_s);
  if (options_.use_provider_forecast) {
    const auto forecast = provider_->forecast(now_s);
    if (const auto* refused = std::get_if<Refused>(&forecast)) {
      fail(*refused, now_s);
      return is_new;
    }
    is_new |= take_forecast(std::get<Answer>(forecast), now_s);
  }
  if (!last_error_.empty()) log_info(name(), " answers again");
  last_error_.clear();
  failures_in_a_row_ = 0;
  last_success_s_ = now_s;
  next_try_s_ = now_s + options_.refresh_s;
  if (is_new && !options_.cache.empty()) save_cache();
  return is_new;
}

bool Feed::take_history(const Answer& answer, double now_s) {
  for (const std::string& warning : answer.warnings) log_warn(name(), ": ", warning);
  if (answer.readings.empty()) return false;
  if (!signal_.empty() && signal_ != answer.signal) {
    log_warn(name(), " now gives ", answer.signal, " intensity instead of ", signal_,
             "; what was read before is dropped");
    history_.clear();
    forecast_.clear();
  }
  if (history_step_s_ != answer.step_s) history_.clear();
  signal_ = answer.signal;
  history_step_s_ = answer.step_s;
  bool is_new = false, ahead = false;
  for (const Reading& each : answer.readings) {
    if (static_cast<double>(each.begin_unix_s) > now_s + kMaxSkewSeconds) {
      ahead = true;  // no reading of a time to come
      continue;
    }
    const auto [place, added] = history_.try_emplace(each.begin_unix_s, each.grams_per_kwh);
    is_new |= added || place->second != each.grams_per_kwh;
    place->second = each.grams_per_kwh;
  }
  if (ahead)
    log_warn(name(), " has readings of times to come: the clock of this machine (", iso_time(now_s),
             ") or the provider's is wrong; they are left out");
  history_.erase(history_.begin(),
                 history_.lower_bound(static_cast<int64_t>(now_s) - options_.keep_history_s));
  if (is_new) rebuild_series();
  return is_new;
}

bool Feed::take_forecast(const Answer& answer, double now_s) {
  if (answer.readings.empty()) return false;
  const double end_s = static_cast<double>(answer.readings.back().begin_unix_s + answer.step_s);
  if (end_s <= now_s) {
    log_warn(name(), " has a forecast that ends at ", iso_time(end_s), ", and it is ", iso_time(now_s),
             " here: it is old, or a clock is wrong; it is not used");
    return false;
  }
  if (signal_.empty()) signal_ = answer.signal;
  forecast_step_s_ = answer.step_s;
  forecast_.clear();
  for (const Reading& each : answer.readings) forecast_[each.begin_unix_s] = each.grams_per_kwh;
  return true;
}

void Feed::fail(const Refused& refused, double now_s) {
  ++failures_;
  double wait_s =
      options_.first_retry_s * std::exp2(static_cast<double>(std::min<int64_t>(failures_in_a_row_++, 20)));
  if (refused.error.kind == ErrorKind::kPermission) wait_s = options_.longest_retry_s;
  wait_s = std::max(std::min(wait_s, options_.longest_retry_s), refused.retry_after_s);
  next_try_s_ = now_s + wait_s;
  if (refused.error.message != last_error_) {
    const bool has_some = !history_.empty() || !forecast_.empty();
    log_warn(refused.error.message, has_some ? "; what was read last holds until it answers again" : "");
  }
  last_error_ = refused.error.message;
}

bool Feed::is_stale(double now_s) const {
  const bool forecast_reaches =
      !forecast_.empty() && static_cast<double>(forecast_.rbegin()->first + forecast_step_s_) > now_s;
  if (forecast_reaches) return false;
  return history_.empty() ||
         static_cast<double>(history_.rbegin()->first + history_step_s_) < now_s - options_.stale_after_s;
}

// Short holes are bridged by the line between their ends; what lies before a long one is not used.
void Feed::rebuild_series() {
  series_.clear();
  forecaster_.reset();
  if (history_.empty()) return;
  auto each = history_.rbegin();
  series_.push_back(std::max(each->second, kSmallestGrams));
  int64_t at = each->first;
  for (++each; each != history_.rend(); ++each) {
    const int64_t steps = (at - each->first) / history_step_s_;
    if (steps > kMaxFilledSteps + 1) break;
    const double later = series_.back(), value = std::max(each->second, kSmallestGrams);
    for (int64_t i = 1; i <= steps; ++i)
      series_.push_back(later + (value - later) * static_cast<double>(i) / static_cast<double>(steps));
    at = each->first;
  }
  std::reverse(series_.begin(), series_.end());
  series_begin_s_ = at;
  forecaster_ = make_forecaster(options_.forecaster, {series_, history_step_s_, series_begin_s_});
}

std::optional<Feed::View> Feed::view(double now_s, double until_s) {
  const bool use_forecast =
      !forecast_.empty() && static_cast<double>(forecast_.rbegin()->first + forecast_step_s_) > now_s;
  if (!use_forecast && !forecaster_) return std::nullopt;
  View view;
  view.step_s = use_forecast ? forecast_step_s_ : history_step_s_;
  view.begin_unix_s = floor_to(now_s, view.step_s);
  const auto steps = static_cast<int64_t>(std::ceil((until_s - static_cast<double>(view.begin_unix_s)) /
                                                    static_cast<double>(view.step_s))) +
                     1;
  Forecast from_readings;
  int64_t skipped = 0;  // steps from the end of the readings to now
  if (forecaster_) {
    const int64_t end = series_begin_s_ + history_step_s_ * static_cast<int64_t>(series_.size());
    skipped = (view.begin_unix_s - end) / history_step_s_;
    const int64_t horizon = skipped + steps * view.step_s / history_step_s_ + 2;
    from_readings = forecaster_->predict(static_cast<int64_t>(series_.size()), std::max<int64_t>(horizon, 1));
  }
  bool only_readings = true;
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t begin = view.begin_unix_s + i * view.step_s;
    const auto found = use_forecast ? forecast_.find(begin) : forecast_.end();
    if (use_forecast && found != forecast_.end()) {
      view.values.push_back(std::max(found->second, kSmallestGrams));
      only_readings = false;
      continue;
    }
    if (forecaster_) {
      const int64_t at = skipped + i * view.step_s / history_step_s_;
      const int64_t kept = std::clamp<int64_t>(at, 0, static_cast<int64_t>(from_readings.values.size()) - 1);
      view.values.push_back(std::max(from_readings.values[static_cast<size_t>(kept)], kSmallestGrams));
      if (!from_readings.deviations.empty())
        view.deviations.push_back(from_readings.deviations[static_cast<size_t>(kept)]);
      continue;
    }
    // No reading at all: the day before, as forecast, else what came last.
    const int64_t day = 86400 / view.step_s;
    view.values.push_back(i >= day               ? view.values[static_cast<size_t>(i - day)]
                          : !view.values.empty() ? view.values.back()
                                                 : std::max(forecast_.begin()->second, kSmallestGrams));
    only_readings = false;
  }
  if (!only_readings || view.deviations.size() != view.values.size()) view.deviations.clear();
  return view;
}

void Feed::load_cache() {
  if (!std::filesystem::exists(options_.cache)) return;
  try {
    const auto json = nlohmann::json::parse(read_file(options_.cache));
    if (json.at("provider") != name()) return;  // another grid
    std::map<int64_t, double> history, forecast;
    for (const auto& each : json.at("history")) history[each.at(0)] = each.at(1);
    for (const auto& each : json.at("forecast")) forecast[each.at(0)] = each.at(1);
    history_step_s_ = json.at("history_step_s");
    forecast_step_s_ = json.at("forecast_step_s");
    signal_ = json.at("signal");
    last_success_s_ = json.at("read_at_unix_s");
    const auto fits = [](const std::map<int64_t, double>& values, int64_t step) {
      if (values.empty()) return true;
      return step > 0 && 3600 % step == 0 && std::all_of(values.begin(), values.end(), [&](const auto& each) {
               return each.first % step == 0;
             });
    };
    if (!fits(history, history_step_s_) || !fits(forecast, forecast_step_s_))
      throw UserError("steps and times do not fit");
    history_ = std::move(history);
    forecast_ = std::move(forecast);
    rebuild_series();
  } catch (const std::exception& error) {
    log_warn("the cache of grid readings ", options_.cache.string(), " is not used: ", error.what());
    history_.clear();
    forecast_.clear();
    signal_.clear();
    last_success_s_ = 0;
  }
}

void Feed::save_cache() const {
  nlohmann::json json = {{"provider", name()},
                         {"signal", signal_},
                         {"unit", "gCO2eq/kWh"},
                         {"read_at_unix_s", last_success_s_},
                         {"history_step_s", history_step_s_},
                         {"forecast_step_s", forecast_step_s_}};
  auto& history = json["history"] = nlohmann::json::array();
  for (const auto& [begin, value] : history_) history.push_back({begin, value});
  auto& forecast = json["forecast"] = nlohmann::json::array();
  for (const auto& [begin, value] : forecast_) forecast.push_back({begin, value});
  try {
    write_file_atomic(options_.cache, json.dump());
  } catch (const UserError& error) {
    log_warn("grid readings are not kept: ", error.what());
  }
}

}  // namespace moebius::energy::carbon
