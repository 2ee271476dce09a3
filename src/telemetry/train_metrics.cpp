#include "telemetry/train_metrics.h"

#include <string>

namespace moebius::telemetry {
namespace {

Labels layer_label(int64_t layer) {
  return {{"layer", std::to_string(layer)}};
}

}  // namespace

TrainMetrics::TrainMetrics(Registry& registry)
    : step(registry.gauge("moebius_train_step", "Optimizer steps done.")),
      loss(registry.gauge("moebius_train_loss", "Mean cross-entropy of the last step in nats per token.")),
      learning_rate(registry.gauge("moebius_train_learning_rate", "Learning rate of the last step.")),
      gradient_norm(
          registry.gauge("moebius_train_gradient_norm", "Global gradient norm of the last step, unclipped.")),
      tokens_per_second(
          registry.gauge("moebius_train_tokens_per_second", "Tokens trained per second, last step.")),
      tokens(registry.counter("moebius_train_tokens_total", "Tokens trained on.")),
      skipped_steps(registry.counter("moebius_train_skipped_steps_total",
                                     "Steps skipped because loss or gradient was not finite.")),
      step_seconds(registry.histogram("moebius_step_seconds", "Duration of an optimizer step in seconds.",
                                      exponential_bounds(0.001, 2, 18))),
      checkpoint_seconds(registry.histogram("moebius_checkpoint_seconds",
                                            "Time from the snapshot to the published checkpoint in seconds.",
                                            exponential_bounds(0.01, 2, 16))),
      validation_loss(registry.gauge("moebius_validation_loss", "Validation loss in nats per token.")),
      validation_nats_per_byte(
          registry.gauge("moebius_validation_nats_per_byte", "Validation loss in nats per byte of text.")),
      resident_bytes(registry.gauge("moebius_resident_memory_bytes", "Memory of the process now.")),
      peak_resident_bytes(
          registry.gauge("moebius_peak_resident_memory_bytes", "Peak memory of the process.")),
      registry_(registry) {}

Gauge& TrainMetrics::expert_load(int64_t layer, int64_t expert) {
  Labels labels = layer_label(layer);
  labels.emplace_back("expert", std::to_string(expert));
  return registry_.gauge("moebius_expert_load",
                         "Slots given to an expert in the last step over the mean of its layer.", labels);
}

Gauge& TrainMetrics::expert_max_violation(int64_t layer) {
  return registry_.gauge("moebius_expert_max_violation", "Largest expert load over the mean load, minus 1.",
                         layer_label(layer));
}

Gauge& TrainMetrics::router_entropy(int64_t layer) {
  return registry_.gauge("moebius_router_entropy", "Mean entropy of the router's distribution in nats.",
                         layer_label(layer));
}

Gauge& TrainMetrics::forecast_error(const std::string& predictor, int64_t horizon) {
  return registry_.gauge(
      "moebius_moe_forecast_error_ratio",
      "Error of the expert load shares forecast for the last step, as a ratio of the shares.",
      {{"predictor", predictor}, {"horizon", std::to_string(horizon)}});
}

Counter& TrainMetrics::dropped_slots(int64_t layer) {
  return registry_.counter("moebius_expert_dropped_slots_total", "Expert slots dropped for lack of capacity.",
                           layer_label(layer));
}

Counter& TrainMetrics::energy_joules() {
  return registry_.counter("moebius_energy_joules_total", "Energy used while training.");
}

Counter& TrainMetrics::gpu_energy_joules(const std::string& uuid) {
  return registry_.counter("moebius_gpu_energy_joules_total",
                           "Energy of the GPU's whole card while training.", {{"UUID", uuid}});
}

Counter& TrainMetrics::host_energy_joules() {
  return registry_.counter("moebius_host_energy_joules_total", "Energy of the CPU packages while training.");
}

Counter& TrainMetrics::phase_energy_joules(const std::string& part, const std::string& phase) {
  return registry_.counter("moebius_phase_energy_joules_total",
                           "Energy by the phase of training; phases sum to the counter.",
                           {{"part", part}, {"phase", phase}});
}

Counter& TrainMetrics::carbon_grams(const std::string& part, const std::string& zone,
                                    const std::string& signal) {
  return registry_.counter("moebius_carbon_grams_total",
                           "CO2 equivalent of the energy, by the intensity that the labels name.",
                           {{"part", part}, {"zone", zone}, {"signal", signal}});
}

Gauge& TrainMetrics::grid_intensity(const std::string& zone, const std::string& signal) {
  return registry_.gauge("moebius_grid_intensity_grams_per_kwh",
                         "Carbon intensity of the grid that grams are counted with.",
                         {{"zone", zone}, {"signal", signal}});
}

Gauge& TrainMetrics::gpu_clock_hertz(const std::string& uuid, const std::string& kind) {
  return registry_.gauge("moebius_gpu_clock_hertz", "Clock of the GPU, last reading.",
                         {{"UUID", uuid}, {"kind", kind}});
}

Gauge& TrainMetrics::device_memory_bytes() {
  return registry_.gauge("moebius_device_memory_bytes", "Memory held on the accelerator.");
}

}  // namespace moebius::telemetry
