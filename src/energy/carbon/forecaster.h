// Forecasts of a grid's carbon intensity from its own past.
//
// A forecaster is deterministic and, but for the oracle, uses values of completed steps alone: changing what
// comes later changes nothing. It is fitted on the fly, zone by zone; nothing is learned elsewhere and
// carried in.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::energy::carbon {

struct Forecast {
  std::vector<double> values;  // g/kWh of steps known, known + 1, ...
  std::vector<double>
      deviations;  // standard deviation of the error of each; empty where the method knows none
};

// A recorded series; the values must outlive what is made of it.
struct Series {
  std::span<const double> values;  // g/kWh
  int64_t step_s = 3600;           // divides a day
  int64_t start_unix_s = 0;        // begin of the first step
};

class Forecaster {
 public:
  virtual ~Forecaster() = default;
  // The forecast when steps 0 .. known - 1 of the series are complete and nothing else is, for `horizon`
  // steps. Cheapest when `known` rises from call to call.
  virtual Forecast predict(int64_t known, int64_t horizon) = 0;
};

// Names:
//   oracle       the series itself (beyond its end: the last value), with `noise` optionally
//   persistence  the latest completed value of the same time of day
//   seven_day    mean of the same time of day over the last 168 completed hours, times the level of the last
//   24 completed
//                hours (their sum over that of the profile)
//   own          ridge regression per horizon on the recent past, fitted online; knows its error
//   (own_forecaster.h)
// With no past at all every honest forecast is flat.
const std::vector<std::string>& forecaster_names();
// UserError naming the nearest when `name` is none of them.
std::string canonical_forecaster_name(std::string_view name);

struct OracleNoise {
  double share = 0;  // standard deviation of the noise on each value, as a share of the series' mean
  uint64_t seed = 0;
};

std::unique_ptr<Forecaster> make_forecaster(const std::string& canonical_name, const Series& series,
                                            const OracleNoise& noise = {});

std::unique_ptr<Forecaster> make_own_forecaster(const Series& series);

}  // namespace moebius::energy::carbon
