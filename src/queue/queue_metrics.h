// The metrics of `moebius queue run`, under the names that dashboards rely on (docs/formats/metrics.md).
#pragma once

#include "queue/stored_job.h"
#include "telemetry/metrics.h"

namespace moebius::queue {

class QueueMetrics {
 public:
  explicit QueueMetrics(telemetry::Registry& registry);

  telemetry::Counter &starts, &pauses, &resizes, &lost_attempts, &deadline_misses;
  telemetry::Counter& energy_joules;  // estimated, of the jobs' own watts
  telemetry::Gauge &places_in_use, &at_risk;
  telemetry::Histogram& wait_seconds;  // of finished jobs: finish - added - estimated length, at least 0
  // Which grid, and which intensity of it, the two below are about.
  void set_grid(const std::string& zone, const std::string& signal);
  telemetry::Counter& carbon_grams();  // that energy times the intensity of the grid
  telemetry::Gauge& intensity();
  telemetry::Gauge& jobs(State state);
  telemetry::Counter& finished(State state);

 private:
  telemetry::Registry& registry_;
  telemetry::Labels grid_{{"zone", ""}, {"signal", ""}};
};

}  // namespace moebius::queue
