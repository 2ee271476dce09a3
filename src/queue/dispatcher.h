// Drives jobs by a policy: plans them, starts, pauses, resizes and resumes them as their plans say.
//
// Everything it must know after a kill is in the store. A start is written down before it is asked of the
// engine (state `starting`, attempt counted), so that after a kill the engine tells what became of it:
// nothing is lost, and engines let no second attempt in while one lives. A stop is written down first as well
// and asked again after a kill. Single-threaded: tick() is called every second or so.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "queue/engine.h"
#include "queue/outlook.h"
#include "queue/policy.h"
#include "queue/queue_metrics.h"
#include "queue/store.h"

namespace moebius::queue {

struct DispatcherOptions {
  std::string policy = "own";           // canonical name
  std::optional<int64_t> capacity = 1;  // places; none: unlimited
  double switch_s = 60;                 // time without progress after a start that resumes or resizes
  double stop_grace_s = 600;            // from asking a job to save and end until it is killed
  double retry_s = 30;                  // after a start that could not be made
  int64_t max_lost_attempts = 5;        // then the job has failed
};

class Dispatcher {
 public:
  // All must outlive it. Only one dispatcher may serve a store at a time (DispatcherLock). Clock's
  // unix_seconds() is the time of jobs and grid. `metrics` may be null.
  Dispatcher(Store& store, Engine& engine, ForecastSource& forecasts, const Clock& clock,
             const DispatcherOptions& options, QueueMetrics* metrics = nullptr);

  // Looks at everything once and does what is due.
  void tick();
  // No job that could run is left.
  bool idle() const;
  // When a plan next wants something, as far as known; kNever: nothing is planned.
  double next_event_s() const;

 private:
  struct Live {
    StoredJob job;
    std::vector<Piece> plan;
    double planned_s = 0;       // 0: not planned by this process
    bool is_told = false;       // that its deadline is out of reach
    bool is_behind = false;     // too many come before it to be planned
    int64_t asked_attempt = 0;  // that this process asked to end before it was seen running
  };

  void reload(double now_s);
  void watch(Live& live, double now_s);
  void count(StoredJob& job, double now_s);
  void finish(Live& live, State state, int code, double now_s, const std::string& what);
  static bool was_asked_to_end(const Live& live);
  void lost(Live& live, double now_s, const std::string& how);
  void back_to_waiting(Live& live, double now_s, const std::string& what);
  void plan_all(double now_s);
  bool needs_plan(const Live& live, double now_s);
  bool make_plan(Live& live, const Calendar& calendar, double now_s);
  void act(double now_s);
  void stop(Live& live, double now_s, const std::string& why);
  void start(Live& live, int workers, double now_s);
  int wanted_workers(const Live& live, double now_s) const;
  int64_t places_in_use() const;
  std::vector<Live*> in_order();
  void export_metrics(double now_s);

  Store& store_;
  Engine& engine_;
  ForecastSource& forecasts_;
  const Clock& clock_;
  DispatcherOptions options_;
  QueueMetrics* metrics_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<Policy> now_;      // while nothing is known of the grid
  std::unique_ptr<Policy> through_;  // for jobs that cannot pause
  std::map<int64_t, Live> jobs_;
  int64_t seen_version_ = -1;
  bool plans_stale_ = true;  // others have written: jobs came, or are wanted otherwise
  bool room_freed_ = false;  // a job has left its places, maybe before its plan said so
};

}  // namespace moebius::queue
