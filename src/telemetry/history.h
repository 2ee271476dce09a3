// The past of a registry's numbers, for charts of somebody who comes later. Bounded: when it is full every
// other sample goes and the interval doubles, so it always spans the whole run.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "telemetry/metrics.h"

namespace moebius::telemetry {

class History {
 public:
  // Families with more series than that (loads of experts) are left out, histograms too.
  static constexpr size_t kMaxSeriesOfFamily = 8;
  explicit History(const Registry& registry, double interval_s = 1, size_t max_samples = 600)
      : registry_(registry), interval_s_(interval_s), max_samples_(max_samples) {}

  // Takes a sample when the last one is an interval ago. Any thread.
  void sample(double now_s);
  // {"times":[...],"series":{"name{label=\"value\"}":[...]}}; null where there was no value.
  std::string json() const;

 private:
  const Registry& registry_;
  mutable std::mutex mutex_;
  double interval_s_;
  size_t max_samples_;
  std::vector<double> times_;
  std::map<std::string, std::vector<double>> series_;  // as long as times_; NaN: none
};

}  // namespace moebius::telemetry
