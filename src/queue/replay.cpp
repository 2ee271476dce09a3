#include "queue/replay.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "base/check.h"
#include "base/error.h"

namespace moebius::queue {
namespace {

struct Progress {
  double work_left_s = 0;
  double ran_until_s = 0;    // end of the last stretch it ran
  int workers = 0;           // of that stretch
  double switch_left_s = 0;  // of the last switch, still without progress
  bool started = false;
  std::vector<Piece> plan;
  JobResult result;
};

struct Event {
  double time_s;
  size_t job;
};
struct Later {
  bool operator()(const Event& a, const Event& b) const {
    return a.time_s != b.time_s ? a.time_s > b.time_s : a.job > b.job;
  }
};

class Replay {
 public:
  Replay(std::span<const Job> jobs, const Grid& grid, const Policy& policy, ForecastSource& forecasts,
         const ScalingProfile& scaling, const ReplayOptions& options)
      : jobs_(jobs),
        policy_(policy),
        forecasts_(forecasts),
        scaling_(scaling),
        options_(options),
        truth_(0, grid.step_s, {grid.grams_per_kwh.begin(), grid.grams_per_kwh.end()}),
        calendar_(options.capacity),
        progress_(jobs.size()) {}

  std::vector<JobResult> run() {
    std::priority_queue<Event, std::vector<Event>, Later> events;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (options_.capacity && jobs_[i].width > *options_.capacity) {
        throw_user_error("job ", jobs_[i].index, " needs ", jobs_[i].width, " cpus, but --capacity is ",
                         *options_.capacity, "; raise it to ", jobs_[i].width, " or leave the job out");
      }
      progress_[i].work_left_s = static_cast<double>(jobs_[i].length_s);
      events.push({static_cast<double>(jobs_[i].arrival_s), i});
    }
    while (!events.empty()) {
      const Event event = events.top();
      events.pop();
      calendar_.forget_before(event.time_s);
      const double next = decide(event.job, event.time_s);
      if (progress_[event.job].work_left_s > kRounding) events.push({next, event.job});
    }
    std::vector<JobResult> results;
    results.reserve(jobs_.size());
    for (size_t i = 0; i < jobs_.size(); ++i) results.push_back(finished(jobs_[i], progress_[i]));
    return results;
  }

 private:
  // Plans the job, runs it up to its next decision, returns when that is.
  double decide(size_t index, double now_s) {
    const Job& job = jobs_[index];
    Progress& progress = progress_[index];
    if (now_s >= static_cast<double>(truth_.end_s())) refuse_unfinished(job);
    set_reserved(job, progress.plan, now_s, false);
    progress.plan.clear();
    const double reach = std::max<double>(
        static_cast<double>(job.budget_s + std::max(job.length_s, job.expected_length_s)), 86400);
    const double until =
        std::max(now_s, static_cast<double>(job.arrival_s)) + reach + static_cast<double>(truth_.step_s());
    const bool running = progress.started && progress.ran_until_s >= now_s - kRounding;
    const Situation situation{.job = job,
                              .now_s = now_s,
                              .work_left_s = progress.work_left_s,
                              .started = progress.started,
                              .workers = running ? progress.workers : 0,
                              .switch_s = static_cast<double>(options_.switch_s),
                              .switch_left_s = running ? progress.switch_left_s : 0,
                              .outlook = forecasts_.at(now_s, until),
                              .calendar = calendar_,
                              .scaling = scaling_};
    std::vector<Piece> plan = policy_.plan(situation);
    MOEBIUS_CHECK(!plan.empty(), "no plan for job ", job.index);
    double next = plan.back().end_s;
    if (policy_.replans(situation.outlook)) next = std::min(next, truth_.next_border(now_s));
    for (size_t i = 0; i < plan.size(); ++i) {
      MOEBIUS_CHECK(plan[i].begin_s >= now_s && plan[i].begin_s < plan[i].end_s, "piece [", plan[i].begin_s,
                    ", ", plan[i].end_s, ") at ", now_s);
      if (plan[i].begin_s >= next) {
        progress.plan.push_back(plan[i]);
        continue;
      }
      execute(job, progress, {plan[i].begin_s, std::min(plan[i].end_s, next), plan[i].workers});
      if (progress.work_left_s <= kRounding) break;
      if (plan[i].end_s > next) progress.plan.push_back({next, plan[i].end_s, plan[i].workers});
    }
    if (progress.work_left_s > kRounding) {
      set_reserved(job, progress.plan, next, true);
    } else {
      progress.plan.clear();
    }
    return next;
  }

  [[noreturn]] void refuse_unfinished(const Job& job) const {
    throw_user_error("job ", job.index, " still runs when the carbon trace ends, ", truth_.end_s() / 3600,
                     " h after the begin; raise --capacity, lower --days or start earlier");
  }

  // What a plan holds of the machine from `from_s` on.
  void set_reserved(const Job& job, const std::vector<Piece>& plan, double from_s, bool reserved) {
    if (!calendar_.limited()) return;
    for (const Piece& each : plan) {
      const double begin = std::max(each.begin_s, from_s);
      if (!(begin < each.end_s)) continue;
      if (reserved) {
        calendar_.reserve(begin, each.end_s, job.width * each.workers);
      } else {
        calendar_.release(begin, each.end_s, job.width * each.workers);
      }
    }
  }

  void execute(const Job& job, Progress& progress, Piece piece) {
    const bool paused = progress.started && progress.ran_until_s < piece.begin_s - kRounding;
    const bool resized = progress.started && progress.workers != piece.workers;
    if (paused || resized) {
      progress.result.resizes += paused ? 2 : 1;
      progress.switch_left_s = static_cast<double>(options_.switch_s);
    }
    const double seconds = piece.end_s - piece.begin_s;
    const double speed = scaling_.speed(piece.workers);
    const double lost = progress.switch_left_s;
    const double needed = lost + progress.work_left_s / speed;
    const double run = std::min(seconds, needed);
    if (piece.begin_s + run > static_cast<double>(truth_.end_s())) refuse_unfinished(job);
    progress.work_left_s = run < needed ? progress.work_left_s - std::max(0.0, run - lost) * speed : 0;
    progress.switch_left_s = std::max(0.0, lost - run);
    const double watts =
        options_.watts_per_cpu * static_cast<double>(job.width) * scaling_.power(piece.workers);
    progress.result.carbon_g += truth_.integral(piece.begin_s, piece.begin_s + run) * watts / 3.6e6;
    progress.result.energy_kwh += run * watts / 3.6e6;
    if (!progress.started) progress.result.start_s = piece.begin_s;
    progress.started = true;
    progress.workers = piece.workers;
    progress.ran_until_s = piece.begin_s + run;
    calendar_.reserve(piece.begin_s, piece.begin_s + run, job.width * piece.workers);
  }

  static JobResult finished(const Job& job, const Progress& progress) {
    JobResult result = progress.result;
    result.finish_s = progress.ran_until_s;
    result.wait_s = std::max(0.0, result.finish_s - static_cast<double>(job.arrival_s + job.length_s));
    result.missed =
        job.deadline_unreachable || result.finish_s > static_cast<double>(job.deadline_s()) + kRounding;
    return result;
  }

  std::span<const Job> jobs_;
  const Policy& policy_;
  ForecastSource& forecasts_;
  const ScalingProfile& scaling_;
  ReplayOptions options_;
  Outlook truth_;
  Calendar calendar_;
  std::vector<Progress> progress_;
};

}  // namespace

std::vector<JobResult> replay(std::span<const Job> jobs, const Grid& grid, const Policy& policy,
                              ForecastSource& forecasts, const ScalingProfile& scaling,
                              const ReplayOptions& options) {
  return Replay(jobs, grid, policy, forecasts, scaling, options).run();
}

Summary summarize(std::span<const JobResult> results) {
  Summary summary;
  if (results.empty()) return summary;
  std::vector<double> waits;
  waits.reserve(results.size());
  double sum = 0;
  for (const JobResult& each : results) {
    summary.carbon_g += each.carbon_g;
    summary.energy_kwh += each.energy_kwh;
    summary.deadline_misses += each.missed;
    summary.resizes += each.resizes;
    waits.push_back(each.wait_s);
    sum += each.wait_s;
  }
  summary.mean_wait_s = sum / static_cast<double>(waits.size());
  const double position = 0.95 * static_cast<double>(waits.size() - 1);
  const auto below = static_cast<size_t>(position);
  std::nth_element(waits.begin(), waits.begin() + static_cast<std::ptrdiff_t>(below), waits.end());
  summary.p95_wait_s = waits[below];
  if (below + 1 < waits.size()) {
    const double above =
        *std::min_element(waits.begin() + static_cast<std::ptrdiff_t>(below) + 1, waits.end());
    summary.p95_wait_s += (above - waits[below]) * (position - static_cast<double>(below));
  }
  return summary;
}

}  // namespace moebius::queue
