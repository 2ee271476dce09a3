// The carbon intensity that a run's joules are counted with: a constant, or a recorded trace of a grid.
// Whether it is average or marginal, of the whole life of the plants or of their chimneys, and whose figure
// it is, goes with every number of grams.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "energy/carbon/trace.h"

namespace moebius::energy {

struct GridOptions {
  double constant_g_per_kwh = 0;    // 0: none
  std::filesystem::path trace{};    // empty: none; see carbon/trace.h
  std::string scope = "lifecycle";  // or "direct"
  std::string kind = "average";     // or "marginal"
  std::string source{};             // of the constant, in words
  std::string replay_from{};        // "2022-06-01T00:00:00Z": the run counts as begun then; empty: now
};

class GridIntensity {
 public:
  // No grid: grams are unknown.
  GridIntensity() = default;
  // `start_unix`: the wall clock when the run begins. UserError when both or a trace that does not reach the
  // start are given.
  GridIntensity(const GridOptions& options, double start_unix);

  explicit operator bool() const { return constant_ > 0 || trace_.has_value(); }
  // g/kWh so many seconds into the run; nothing without a grid and behind a trace's end.
  std::optional<double> at(double seconds) const;
  // "400 g/kWh, average, lifecycle, constant (source)"; empty without a grid.
  const std::string& description() const { return description_; }
  const std::string& zone() const { return zone_; }      // of a trace; "constant"
  const std::string& signal() const { return signal_; }  // "lifecycle average"

 private:
  double constant_ = 0;
  std::optional<carbon::Trace> trace_;
  double offset_s_ = 0;  // of the run's begin in the trace
  std::string description_, zone_, signal_;
};

inline constexpr double kJoulesPerKwh = 3.6e6;

}  // namespace moebius::energy
