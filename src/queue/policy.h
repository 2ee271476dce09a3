// Policies: when does a job run, and with how many workers?
//
// A policy is a pure function of what it is shown: the job, its progress, the forecast of the moment and what
// is free. It never sees the true intensity, other jobs or the clock. With unlimited capacity jobs do not
// touch each other.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "queue/calendar.h"
#include "queue/outlook.h"
#include "queue/scaling.h"
#include "queue/workload.h"

namespace moebius::queue {

struct Situation {
  const Job& job;
  double now_s = 0;
  double work_left_s = 0;  // seconds on one worker
  bool started = false;
  int workers = 0;           // that run at this moment; 0: not started, or paused
  double switch_s = 0;       // time without progress after a pause or a change of size
  double switch_left_s = 0;  // of the last switch, while the job goes on as it is
  const Outlook& outlook;    // made now, reaches at least deadline + what is left
  const Calendar& calendar;  // without this job's own plan
  const ScalingProfile& scaling;
};

class Policy {
 public:
  virtual ~Policy() = default;
  // Where the job runs from now on, rising, without overlap, where the calendar has room. The replay runs it
  // until the work is done and cuts the rest off; when work is left at the end (lost to switching) it asks
  // again.
  virtual std::vector<Piece> plan(const Situation& situation) const = 0;
  // Whether to ask again at the begin of the next step of the grid, with the forecast made then.
  virtual bool replans(const Outlook&) const { return false; }
};

// Names, as in docs/carbon.md:
//   now            at once
//   lowest_slot    start in the step of the lowest intensity within the budget (GAIA)
//   lowest_window  start at arrival + k steps, least carbon over the expected length (Let's Wait Awhile,
//   GAIA) carbon_time    the same starts, most carbon saved per time to completion (GAIA) ecovisor       run
//   while below the 30th percentile of the next 24 h, until the budget is used (Ecovisor in GAIA's form)
//   wait_awhile    pause and resume: the cheapest steps up to the deadline (Let's Wait Awhile)
//   elastic        greedy marginal carbon per work over (step, next worker) (CarbonScaler)
//   own            ours: planned again every step, with the forecast's uncertainty, what switching costs, and
//   deadlines
const std::vector<std::string>& policy_names();
// One of policy_names(), its aliases (run_now, threshold, greedy, carbonscaler) or either in other spelling
// (Lowest-Window). UserError naming the nearest otherwise.
std::string canonical_policy_name(std::string_view name);
std::unique_ptr<Policy> make_policy(const std::string& canonical_name);

// Helpers that policies share.

// Seconds of work below this are rounding.
inline constexpr double kRounding = 1e-6;

// From `begin` on wherever there is room with `workers`, until `work` seconds of run time are planned.
std::vector<Piece> run_on(const Calendar& calendar, const Job& job, double begin_s, double run_s,
                          int workers = 1);
void append(std::vector<Piece>& pieces, Piece piece);  // joins what touches

// Their makers.
std::unique_ptr<Policy> make_now_policy();
std::unique_ptr<Policy> make_lowest_slot_policy();
std::unique_ptr<Policy> make_lowest_window_policy();
std::unique_ptr<Policy> make_carbon_time_policy();
std::unique_ptr<Policy> make_ecovisor_policy();
std::unique_ptr<Policy> make_wait_awhile_policy();
std::unique_ptr<Policy> make_elastic_policy();
std::unique_ptr<Policy> make_own_policy();

}  // namespace moebius::queue
