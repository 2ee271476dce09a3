#include "queue/queue_metrics.h"

namespace moebius::queue {

QueueMetrics::QueueMetrics(telemetry::Registry& registry)
    : starts(registry.counter("moebius_queue_starts_total", "Times a job was started or resumed.")),
      pauses(registry.counter("moebius_queue_pauses_total", "Times a job was paused.")),
      resizes(registry.counter("moebius_queue_resizes_total", "Times a job was stopped to change its size.")),
      lost_attempts(registry.counter("moebius_queue_lost_attempts_total",
                                     "Starts of a job that ended without an exit code.")),
      deadline_misses(registry.counter("moebius_queue_deadline_misses_total",
                                       "Jobs that finished after their deadline.")),
      energy_joules(registry.counter("moebius_queue_energy_joules_total",
                                     "Energy of jobs, estimated from the watts they were added with.")),
      places_in_use(registry.gauge("moebius_queue_places_in_use", "Places of the capacity that jobs take.")),
      at_risk(registry.gauge("moebius_queue_deadlines_at_risk",
                             "Jobs whose estimated work no longer fits before their deadline.")),
      wait_seconds(registry.histogram("moebius_queue_job_wait_seconds",
                                      "Time a job finished later than if it had run at once as estimated.",
                                      telemetry::exponential_bounds(60, 2, 14))),
      registry_(registry) {}

void QueueMetrics::set_grid(const std::string& zone, const std::string& signal) {
  grid_ = {{"zone", zone}, {"signal", signal}};
}

telemetry::Counter& QueueMetrics::carbon_grams() {
  return registry_.counter("moebius_queue_carbon_grams_total",
                           "Emissions of jobs: their estimated energy times the intensity of the grid.",
                           grid_);
}

telemetry::Gauge& QueueMetrics::intensity() {
  return registry_.gauge("moebius_grid_intensity_grams_per_kwh",
                         "Carbon intensity of the grid that grams are counted with.", grid_);
}

telemetry::Gauge& QueueMetrics::jobs(State state) {
  return registry_.gauge("moebius_queue_jobs", "Jobs that are not over, by state.",
                         {{"state", state_name(state)}});
}

telemetry::Counter& QueueMetrics::finished(State state) {
  return registry_.counter("moebius_queue_finished_jobs_total", "Jobs that ended, by how.",
                           {{"state", state_name(state)}});
}

}  // namespace moebius::queue
