#include "queue/dispatcher.h"

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "queue/plan_text.h"

namespace moebius::queue {
namespace {

constexpr double kSaveEverySeconds = 60;
// With a capacity, so many waiting jobs are planned, the first in the order; those behind wait for a place
// there.
constexpr int64_t kPlanned = 1000;

// What is left of the job, as policies see one: as if it arrived now.
Job rest_of(const StoredJob& stored, double now_s) {
  Job job;
  job.index = stored.id;
  job.arrival_s = static_cast<int64_t>(std::floor(now_s));
  job.length_s = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(stored.work_left_s())));
  job.expected_length_s = job.length_s;
  job.width = stored.width;
  const double slack = stored.deadline_s - now_s - stored.work_left_s() - stored.switch_left_s;
  job.budget_s = slack > 0 ? static_cast<int64_t>(slack) : 0;
  job.deadline_unreachable = slack < 0;
  return job;
}

bool is_pausing_policy(const std::string& name) {
  return name == "ecovisor" || name == "wait_awhile" || name == "elastic" || name == "own";
}

// SIGINT, SIGTERM and SIGKILL, as a machine that goes down or a cluster that needs the place sends them.
bool is_signal(int code) {
  return code == 130 || code == 143 || code == 137;
}

}  // namespace

Dispatcher::Dispatcher(Store& store, Engine& engine, ForecastSource& forecasts, const Clock& clock,
                       const DispatcherOptions& options, QueueMetrics* metrics)
    : store_(store),
      engine_(engine),
      forecasts_(forecasts),
      clock_(clock),
      options_(options),
      metrics_(metrics),
      policy_(make_policy(options.policy)),
      now_(make_policy("now")),
      through_(make_policy(is_pausing_policy(options.policy) ? "lowest_window" : options.policy)) {}

void Dispatcher::tick() {
  const double now_s = clock_.unix_seconds();
  reload(now_s);
  for (auto& [id, live] : jobs_) {
    if (is_active(live.job.state)) watch(live, now_s);
  }
  std::erase_if(jobs_, [](const auto& each) { return is_over(each.second.job.state); });
  plan_all(now_s);
  act(now_s);
  if (metrics_ != nullptr) export_metrics(now_s);
}

bool Dispatcher::idle() const {
  return std::all_of(jobs_.begin(), jobs_.end(), [](const auto& each) {
    return each.second.job.state == State::waiting && each.second.job.wanted == Wanted::hold;
  });
}

double Dispatcher::next_event_s() const {
  double next = kNever;
  for (const auto& [id, live] : jobs_) {
    for (const Piece& piece : live.plan) {
      next = std::min(next, live.job.state == State::waiting ? piece.begin_s : piece.end_s);
      if (live.job.state == State::waiting) break;
    }
  }
  return next;
}

// Takes over what other processes have written.
void Dispatcher::reload(double now_s) {
  const int64_t version = store_.database().data_version();
  if (version == seen_version_) return;
  seen_version_ = version;
  plans_stale_ = true;
  std::map<int64_t, Live> before;
  before.swap(jobs_);
  for (StoredJob& stored : store_.unfinished()) {
    const auto known = before.find(stored.id);
    Live live;
    if (known != before.end()) {
      live = std::move(known->second);
      live.job.wanted = stored.wanted;
    } else {
      live.job = std::move(stored);
      live.plan = parse_plan(live.job.plan);
      if (!live.plan.empty() && live.plan.back().end_s > now_s) live.planned_s = now_s;
    }
    const int64_t id = live.job.id;
    jobs_.emplace_hint(jobs_.end(), id, std::move(live));
  }
}

// What became of an attempt since the last tick.
void Dispatcher::watch(Live& live, double now_s) {
  StoredJob& job = live.job;
  const Result<RunStatus> status = engine_.status(job.id, job.attempts);
  if (!status) {
    job.note = status.error().message;
    return;
  }
  switch (status->kind) {
    case RunStatus::Kind::pending:
      job.counted_until_s = now_s;
      break;
    case RunStatus::Kind::running:
      if (job.state == State::starting) {
        job.state = State::running;
        job.state_since_s = job.counted_until_s = now_s;
        store_.move(job, State::starting, now_s, "runs");
      }
      count(job, now_s);
      break;
    case RunStatus::Kind::exited:
      count(job, now_s);
      if (status->code == job.pause_code || (was_asked_to_end(live) && is_signal(status->code))) {
        if (job.wanted == Wanted::cancel)
          return finish(live, State::cancelled, status->code, now_s, "cancelled");
        ++job.switches;
        return back_to_waiting(live, now_s, "paused");
      }
      if (job.wanted == Wanted::cancel && status->code != 0 &&
          (was_asked_to_end(live) || is_signal(status->code)))
        return finish(live, State::cancelled, status->code, now_s, "cancelled");
      if (status->code == 0) return finish(live, State::done, 0, now_s, "done");
      if (job.can_pause && is_signal(status->code))
        return lost(live, now_s, concat("was ended by others with code ", status->code));
      return finish(live, State::failed, status->code, now_s, concat("failed with code ", status->code));
    case RunStatus::Kind::none:
      if (job.wanted == Wanted::cancel) return finish(live, State::cancelled, 0, now_s, "cancelled");
      if (job.state == State::starting) return back_to_waiting(live, now_s, "was not started");
      return lost(live, now_s, "ended without a word");
  }
  if (job.state == State::stopping) {
    const bool late = now_s - job.state_since_s > options_.stop_grace_s;
    if (const auto asked = engine_.stop(job.id, job.attempts, late); !asked) job.note = asked.error().message;
  }
}

// One that was still starting may end by the signal itself: its program did not listen yet.
bool Dispatcher::was_asked_to_end(const Live& live) {
  return live.job.state == State::stopping || live.asked_attempt == live.job.attempts;
}

// An attempt that nobody asked to end: another one goes on from the last checkpoint, but not for ever.
void Dispatcher::lost(Live& live, double now_s, const std::string& how) {
  if (metrics_ != nullptr) metrics_->lost_attempts.add();
  const int64_t times = ++live.job.lost_attempts;
  if (times > options_.max_lost_attempts)
    return finish(live, State::failed, 0, now_s, concat(how, ", ", times, " times"));
  back_to_waiting(live, now_s, how + "; goes on from its last checkpoint");
}

// Time that has run since it was last counted: progress, energy, emissions.
void Dispatcher::count(StoredJob& job, double now_s) {
  const double seconds = now_s - job.counted_until_s;
  if (job.counted_until_s == 0 || seconds <= 0) {
    job.counted_until_s = now_s;
    return;
  }
  const double started_up = std::min(seconds, job.switch_left_s);
  job.switch_left_s -= started_up;
  const int workers = std::clamp(job.workers, 1, job.scaling.max_workers());
  job.work_done_s += (seconds - started_up) * job.scaling.speed(workers);
  if (job.watts > 0) {
    const double joules = job.watts * job.scaling.power(workers) * seconds;
    const double intensity = forecasts_.at(now_s, now_s).value_at(now_s);
    const double grams = std::isfinite(intensity) ? joules / 3.6e6 * intensity : 0;
    job.energy_kwh += joules / 3.6e6;
    job.carbon_g += grams;
    if (metrics_ != nullptr) {
      metrics_->energy_joules.add(joules);
      if (grams > 0) metrics_->carbon_grams().add(grams);
    }
  }
  const bool save =
      std::floor(now_s / kSaveEverySeconds) != std::floor(job.counted_until_s / kSaveEverySeconds);
  job.counted_until_s = now_s;
  if (save) store_.save(job);
}

void Dispatcher::finish(Live& live, State state, int code, double now_s, const std::string& what) {
  StoredJob& job = live.job;
  const State from = job.state;
  job.state = state;
  job.state_since_s = job.finished_s = now_s;
  job.exit_code = code;
  job.workers = 0;
  job.note = state == State::done ? "" : what;
  job.plan.clear();
  store_.move(job, from, now_s, what);
  room_freed_ = true;
  log_info("job ", job.id, " (", job.name, "): ", what);
  if (metrics_ == nullptr) return;
  metrics_->finished(state).add();
  if (state != State::done) return;
  metrics_->wait_seconds.observe(std::max(0.0, now_s - job.added_s - job.length_s));
  if (now_s > job.deadline_s) metrics_->deadline_misses.add();
}

void Dispatcher::back_to_waiting(Live& live, double now_s, const std::string& what) {
  StoredJob& job = live.job;
  const State from = job.state;
  job.state = State::waiting;
  job.state_since_s = now_s;
  job.workers = 0;
  job.switch_left_s = 0;
  job.note = what;
  if (store_.move(job, from, now_s, what)) log_info("job ", job.id, " (", job.name, "): ", what);
  room_freed_ = true;
}

// Active jobs first, then by priority, then in the order of adding.
std::vector<Dispatcher::Live*> Dispatcher::in_order() {
  std::vector<Live*> order;
  order.reserve(jobs_.size());
  for (auto& [id, live] : jobs_) order.push_back(&live);
  std::stable_sort(order.begin(), order.end(), [](const Live* a, const Live* b) {
    if (is_active(a->job.state) != is_active(b->job.state)) return is_active(a->job.state);
    return a->job.priority > b->job.priority;
  });
  return order;
}

bool Dispatcher::needs_plan(const Live& live, double now_s) {
  if (live.job.wanted != Wanted::run || live.job.state == State::stopping) return false;
  if (is_active(live.job.state) && (!live.job.can_pause || live.job.work_left_s() <= 0)) return false;
  if (live.planned_s == 0 || live.plan.empty() || live.plan.back().end_s <= now_s) return true;
  const Outlook& outlook = forecasts_.at(now_s, now_s);
  const Policy& policy = live.job.can_pause ? *policy_ : *through_;
  return policy.replans(outlook) && live.planned_s < static_cast<double>(outlook.begin_s());
}

// Whoever keeps a plan keeps its place, unless somebody before them in the order now needs it.
void Dispatcher::plan_all(double now_s) {
  const bool limited = options_.capacity.has_value();
  bool any = limited && (plans_stale_ || room_freed_);
  if (!any) {
    for (const auto& [id, live] : jobs_) any |= !live.is_behind && needs_plan(live, now_s);
  }
  if (!any) return;
  const bool anew = limited && room_freed_;
  plans_stale_ = room_freed_ = false;
  int64_t looked_at = 0;
  Calendar calendar(options_.capacity);
  std::vector<const StoredJob*> changed;
  const auto fits = [&](const Piece& piece, int64_t width) {
    return calendar.free_workers(std::max(piece.begin_s, now_s), piece.end_s, width, piece.workers) >=
           piece.workers;
  };
  for (Live* live : in_order()) {
    const StoredJob& job = live->job;
    if (job.wanted == Wanted::hold && job.state == State::waiting) continue;
    live->is_behind = limited && job.state == State::waiting && looked_at++ >= kPlanned;
    if (live->is_behind) {
      live->plan.clear();
      continue;
    }
    if (anew && job.state == State::waiting) live->planned_s = 0;
    const bool fixed = is_active(job.state) && (!job.can_pause || job.state == State::stopping ||
                                                job.work_left_s() <= 0 || job.wanted != Wanted::run);
    if (fixed) {
      // Runs on to its end, however wrong its estimate was; a stopping one takes its place while it saves.
      const double left = std::max(job.work_left_s() / job.scaling.speed(std::max(job.workers, 1)), 1.0);
      live->plan = {{now_s, now_s + (job.state == State::stopping ? options_.switch_s + 1 : left),
                     std::max(job.workers, 1)}};
    } else {
      bool keeps = !needs_plan(*live, now_s);
      for (const Piece& piece : live->plan) keeps &= piece.end_s <= now_s || fits(piece, job.width);
      if (!keeps && make_plan(*live, calendar, now_s)) changed.push_back(&job);
    }
    if (!limited) continue;
    for (const Piece& piece : live->plan) {
      if (piece.end_s > now_s && fits(piece, job.width))
        calendar.reserve(std::max(piece.begin_s, now_s), piece.end_s, job.width * piece.workers);
    }
  }
  if (changed.empty()) return;
  Transaction together(store_.database());  // a hundred thousand plans are one write
  for (const StoredJob* job : changed) store_.save(*job);
  together.commit();
}

// Whether the plan is another one than before.
bool Dispatcher::make_plan(Live& live, const Calendar& calendar, double now_s) {
  StoredJob& job = live.job;
  const Job rest = rest_of(job, now_s);
  if (rest.deadline_unreachable && !live.is_told) {
    live.is_told = true;
    log_warn("job ", job.id, " (", job.name, ") cannot meet its deadline of ", iso_time(job.deadline_s),
             "; it runs as soon as there is room");
  }
  if (options_.capacity && rest.width > *options_.capacity) {
    job.note = concat("needs ", rest.width, " places, the queue has ", *options_.capacity);
    live.plan.clear();
    return false;
  }
  const double reach = std::max<double>(static_cast<double>(rest.budget_s + rest.length_s), 86400);
  const Outlook& outlook = forecasts_.at(now_s, now_s);
  const Situation situation{
      .job = rest,
      .now_s = now_s,
      .work_left_s = std::max(job.work_left_s(), 1.0),
      .started = job.first_start_s > 0,
      .workers = job.state == State::running ? job.workers : 0,
      .switch_s = options_.switch_s,
      .switch_left_s = job.switch_left_s,
      .outlook = forecasts_.at(now_s, now_s + reach + static_cast<double>(2 * outlook.step_s())),
      .calendar = calendar,
      .scaling = job.scaling};
  const bool grid_known = std::isfinite(situation.outlook.value_at(now_s));
  live.plan = (!grid_known ? *now_ : job.can_pause ? *policy_ : *through_).plan(situation);
  live.planned_s = now_s;
  std::string text = plan_text(live.plan);
  if (text == job.plan) return false;
  job.plan = std::move(text);
  return true;
}

int Dispatcher::wanted_workers(const Live& live, double now_s) const {
  for (const Piece& piece : live.plan) {
    if (piece.begin_s <= now_s && now_s < piece.end_s) return piece.workers;
  }
  return 0;
}

int64_t Dispatcher::places_in_use() const {
  int64_t places = 0;
  for (const auto& [id, live] : jobs_) {
    if (is_active(live.job.state)) places += live.job.width * std::max(live.job.workers, 1);
  }
  return places;
}

void Dispatcher::act(double now_s) {
  const std::vector<Live*> order = in_order();
  for (Live* live : order) {
    StoredJob& job = live->job;
    if (job.state == State::starting) {
      // Accepted by a cluster and not running yet: taken back when it is no longer wanted, or not in this
      // size.
      const bool fits_plan = !job.can_pause || wanted_workers(*live, now_s) == job.workers;
      if (job.wanted == Wanted::run && fits_plan) continue;
      live->asked_attempt = job.attempts;
      if (const auto asked = engine_.stop(job.id, job.attempts, false); !asked)
        job.note = asked.error().message;
      continue;
    }
    if (job.state != State::running) continue;
    if (job.wanted == Wanted::cancel) {
      stop(*live, now_s, "to be cancelled");
    } else if (job.wanted == Wanted::hold && job.can_pause) {
      stop(*live, now_s, "asked to pause by its user");
    } else if (job.wanted == Wanted::run && job.can_pause && job.work_left_s() > 0) {
      const int workers = wanted_workers(*live, now_s);
      if (workers == 0) {
        if (metrics_ != nullptr) metrics_->pauses.add();
        stop(*live, now_s, "asked to pause");
      } else if (workers != job.workers) {
        if (metrics_ != nullptr) metrics_->resizes.add();
        stop(*live, now_s, concat("asked to stop, to go on with ", workers, " workers"));
      }
    }
  }
  int64_t in_use = places_in_use();
  for (Live* live : order) {
    const StoredJob& job = live->job;
    if (job.state != State::waiting || job.wanted != Wanted::run) continue;
    const int workers = wanted_workers(*live, now_s);
    const int64_t places = job.width * workers;
    if (workers == 0 || (options_.capacity && in_use + places > *options_.capacity)) continue;
    start(*live, workers, now_s);
    if (is_active(job.state)) in_use += places;
  }
}

void Dispatcher::stop(Live& live, double now_s, const std::string& why) {
  StoredJob& job = live.job;
  job.state = State::stopping;
  job.state_since_s = now_s;
  job.note = why;
  if (!store_.move(job, State::running, now_s, why)) return;
  log_info("job ", job.id, " (", job.name, "): ", why);
  if (const auto asked = engine_.stop(job.id, job.attempts, false); !asked) job.note = asked.error().message;
}

void Dispatcher::start(Live& live, int workers, double now_s) {
  StoredJob& job = live.job;
  if (job.state_since_s > now_s) return;  // a start that could not be made is tried again later
  const StoredJob before = job;
  job.state = State::starting;
  job.state_since_s = now_s;
  ++job.attempts;
  job.workers = workers;
  job.counted_until_s = now_s;
  job.switch_left_s = job.first_start_s > 0 ? options_.switch_s : 0;
  if (job.first_start_s == 0) job.first_start_s = now_s;
  job.note.clear();
  if (!store_.move(job, State::waiting, now_s,
                   concat("starts with ", workers, workers == 1 ? " worker" : " workers"))) {
    job = before;  // held or cancelled meanwhile; reload() will tell
    return;
  }
  const Result<void> started = engine_.start({.job = job.id,
                                              .attempt = job.attempts,
                                              .workers = workers,
                                              .width = job.width,
                                              .name = job.name,
                                              .command = job.command,
                                              .folder = job.folder,
                                              .length_s = job.length_s});
  if (started) {
    if (metrics_ != nullptr) metrics_->starts.add();
    log_info("job ", job.id, " (", job.name, "): started, attempt ", job.attempts, ", ", workers, " workers");
  } else if (started.error().kind == ErrorKind::kInvalid) {
    finish(live, State::failed, 127, now_s, started.error().message);
  } else {
    job.first_start_s = before.first_start_s;
    back_to_waiting(live, now_s, started.error().message);
    job.state_since_s = now_s + options_.retry_s;
  }
}

void Dispatcher::export_metrics(double now_s) {
  std::vector<double> counts(kNumStates, 0);
  double at_risk = 0;
  for (const auto& [id, live] : jobs_) {
    ++counts[static_cast<size_t>(live.job.state)];
    at_risk += now_s + live.job.work_left_s() / live.job.scaling.max_speed() > live.job.deadline_s ? 1 : 0;
  }
  for (const State state : {State::waiting, State::starting, State::running, State::stopping})
    metrics_->jobs(state).set(counts[static_cast<size_t>(state)]);
  metrics_->at_risk.set(at_risk);
  metrics_->places_in_use.set(static_cast<double>(places_in_use()));
  const double intensity = forecasts_.at(now_s, now_s).value_at(now_s);
  if (std::isfinite(intensity)) metrics_->intensity().set(intensity);
}

}  // namespace moebius::queue
