// The metrics of a training run, under the names that dashboards rely on (docs/formats/metrics.md lists
// them). Gauges that were never set and series that were never asked for are not exported.
#pragma once

#include <cstdint>
#include <string>

#include "telemetry/metrics.h"

namespace moebius::telemetry {

class TrainMetrics {
 public:
  explicit TrainMetrics(Registry& registry);

  Gauge& step;           // optimizer steps done
  Gauge& loss;           // cross-entropy of the last step, nats per token
  Gauge& learning_rate;  // of the last step
  Gauge& gradient_norm;  // global, before clipping
  Gauge& tokens_per_second;
  Counter& tokens;         // trained on
  Counter& skipped_steps;  // loss or gradient was not finite
  Histogram& step_seconds;
  Histogram& checkpoint_seconds;    // from snapshot to published
  Gauge& validation_loss;           // nats per token
  Gauge& validation_nats_per_byte;  // of text; times 1.4427 = bits per byte (promtool refuses bits in names)
  Gauge& resident_bytes;
  Gauge& peak_resident_bytes;

  // Slots of the last step given to an expert, as a multiple of the mean over experts.
  Gauge& expert_load(int64_t layer, int64_t expert);
  // Max load / mean load - 1 of the last step.
  Gauge& expert_max_violation(int64_t layer);
  Gauge& router_entropy(int64_t layer);  // nats
  // Of a forecast that fell due in the last step: mean of |forecast - share| / share over experts and layers.
  Gauge& forecast_error(const std::string& predictor, int64_t horizon);
  Counter& dropped_slots(int64_t layer);
  // Only where a counter is readable.
  Counter& energy_joules();
  // By the ledger, settled up to the last second or so. UUID is the label of dcgm-exporter.
  Counter& gpu_energy_joules(const std::string& uuid);
  Counter& host_energy_joules();
  // `part`: "gpu" or "host".
  Counter& phase_energy_joules(const std::string& part, const std::string& phase);
  Counter& carbon_grams(const std::string& part, const std::string& zone, const std::string& signal);
  Gauge& grid_intensity(const std::string& zone, const std::string& signal);
  Gauge& gpu_clock_hertz(const std::string& uuid, const std::string& kind);  // "sm", "memory"
  Gauge& device_memory_bytes();

 private:
  Registry& registry_;
};

}  // namespace moebius::telemetry
