// What is known of a grid now: readings and forecast of a provider, kept through its failures.
//
// refresh() asks the provider when that is due: every `refresh_s`, after a failure later and later (or when
// the server said), after a refused token hourly. What was read last stays good until then and is written to
// a cache file, so that a restart, or a provider that is down, costs nothing that was known. A forecast comes
// from the provider's newest one as long as it reaches; where there is none, and behind its end, from the
// readings (forecaster.h). Never throws for what the provider does. One thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "energy/carbon/forecaster.h"
#include "energy/carbon/provider.h"

namespace moebius::energy::carbon {

struct FeedOptions {
  double refresh_s = 900;
  double first_retry_s = 30, longest_retry_s = 3600;
  double stale_after_s = 3 * 3600;   // readings end so long ago, and no forecast reaches now
  std::filesystem::path cache = {};  // empty: none
  std::string forecaster = "own";    // for what the provider does not forecast
  bool use_provider_forecast = true;
  int64_t keep_history_s = 120 * 86400;
};

class Feed {
 public:
  Feed(std::unique_ptr<Provider> provider, const FeedOptions& options);

  // True when something new was read.
  bool refresh(double now_unix_s);

  struct View {
    int64_t begin_unix_s = 0, step_s = 3600;  // of the step that holds now
    std::vector<double> values;               // up to `until`
    std::vector<double> deviations;           // of their errors, where known
  };
  // The forecast from now to `until`; nothing when nothing is known of the grid.
  std::optional<View> view(double now_unix_s, double until_unix_s);

  std::string name() const { return provider_->name(); }
  const std::string& signal() const { return signal_; }  // empty until something was read
  double last_success_s() const { return last_success_s_; }
  int64_t failures() const { return failures_; }
  const std::string& last_error() const { return last_error_; }  // empty when the last request succeeded
  bool is_stale(double now_unix_s) const;

 private:
  bool take_history(const Answer& answer, double now_s);
  bool take_forecast(const Answer& answer, double now_s);
  void fail(const Refused& refused, double now_s);
  void load_cache();
  void save_cache() const;
  void rebuild_series();

  std::unique_ptr<Provider> provider_;
  FeedOptions options_;
  std::map<int64_t, double> history_, forecast_;  // by begin of their step
  int64_t history_step_s_ = 0, forecast_step_s_ = 0;
  std::string signal_, last_error_;
  double next_try_s_ = 0, last_success_s_ = 0;
  int64_t failures_ = 0, failures_in_a_row_ = 0;
  // The end of the history without holes, and its forecaster.
  std::vector<double> series_;
  int64_t series_begin_s_ = 0;
  std::unique_ptr<Forecaster> forecaster_;
};

}  // namespace moebius::energy::carbon
