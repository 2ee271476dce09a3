// `moebius queue simulate`: what a policy would have emitted with recorded jobs on a recorded grid.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/units.h"
#include "cli/grid_forecasts.h"
#include "cli/queue_command.h"
#include "energy/carbon/forecaster.h"
#include "energy/carbon/trace.h"
#include "queue/replay.h"

namespace moebius::cli {
namespace {

namespace carbon = energy::carbon;

struct Arguments {
  std::string jobs, carbon, scope = "lifecycle", lengths = "queue_mean", scaling, profile, per_job;
  std::vector<std::string> policies{"now"}, forecasts{"oracle"};
  std::vector<int64_t> start_hours{0};
  std::optional<int> year;
  int64_t days = 30, fill_gaps = 0;
  std::optional<int64_t> capacity;
  std::optional<double> slack_hours;
  double switch_seconds = 0, watts_per_cpu = 1, noise = 0;
  uint64_t seed = 0;
  bool json = false;
};

struct Run {
  int64_t start_hour = 0;
  std::string policy, forecast;
  queue::Summary summary;
  double relative_to_now = 1;
  size_t jobs = 0, jobs_left_out = 0;
};

// The jobs of one window and the grid they meet.
struct Window {
  int64_t start_hour = 0, first_step = 0;
  queue::Grid grid;
  std::vector<queue::Job> jobs;
  size_t left_out = 0;
};

queue::WorkloadRules rules_of(const Arguments& arguments) {
  queue::WorkloadRules rules;
  if (arguments.slack_hours) rules.budget_s = static_cast<int64_t>(*arguments.slack_hours * 3600);
  if (arguments.lengths != "queue_mean" && arguments.lengths != "known") {
    throw_user_error("--lengths is '", arguments.lengths, "'; use queue_mean or known");
  }
  rules.lengths_known = arguments.lengths == "known";
  return rules;
}

carbon::Trace trace_of(const Arguments& arguments) {
  if (arguments.scope != "lifecycle" && arguments.scope != "direct") {
    throw_user_error("--scope is '", arguments.scope, "'; use lifecycle or direct");
  }
  const auto scope = arguments.scope == "direct" ? carbon::Scope::kDirect : carbon::Scope::kLifecycle;
  carbon::Trace trace =
      carbon::read_trace(arguments.carbon, {.scope = scope, .max_gap_steps = arguments.fill_gaps});
  if (trace.filled_steps > 0) {
    log_warn(concat(arguments.carbon, ": ", trace.filled_steps,
                    " missing values were filled between their neighbours"));
  }
  return trace;
}

Window window_of(const Arguments& arguments, const carbon::Trace& trace, const std::vector<queue::Job>& jobs,
                 int64_t start_hour) {
  Window window;
  window.start_hour = start_hour;
  const int year = arguments.year ? *arguments.year : std::stoi(trace.first_day().substr(0, 4));
  window.first_step = trace.index_of_year(year) + start_hour * 3600 / trace.step_s;
  if (window.first_step >= static_cast<int64_t>(trace.values.size())) {
    throw_user_error("--start-hour ", start_hour, " of ", year, " lies behind the carbon trace of ",
                     trace.zone, ", which ends on ", trace.last_day(),
                     "; lower it or choose an earlier --year");
  }
  window.grid = {std::span(trace.values).subspan(window.first_step), trace.step_s};
  size_t in_days = 0;
  for (const queue::Job& job : jobs) {
    if (job.arrival_s >= arguments.days * 86400) continue;
    ++in_days;
    if (job.deadline_s() <= window.grid.end_s()) window.jobs.push_back(job);
  }
  window.left_out = jobs.size() - window.jobs.size();
  if (window.jobs.empty()) {
    throw_user_error("no job of ", arguments.jobs, " can be replayed from hour ", start_hour, " of ", year,
                     ": ", in_days, " of ", jobs.size(), " arrive within --days ", arguments.days,
                     in_days == 0 ? "; raise it"
                                  : concat(", but their deadlines lie behind the trace's end on ",
                                           trace.last_day(), "; start earlier"));
  }
  const size_t behind = in_days - window.jobs.size();
  if (behind > 0) {
    log_warn(concat(behind, " of ", in_days, " jobs are left out: they could run beyond the end of ",
                    arguments.carbon, " (", trace.last_day(), ")"));
  }
  return window;
}

void warn_of_deadlines(const std::vector<queue::Job>& jobs) {
  const auto is_late = [](const queue::Job& job) { return job.deadline_unreachable; };
  const auto first = std::find_if(jobs.begin(), jobs.end(), is_late);
  if (first == jobs.end()) return;
  log_warn(concat("deadlines of ", std::count_if(jobs.begin(), jobs.end(), is_late),
                  " jobs cannot be met (job ", first->index,
                  " is the first): they run at once and count as missed"));
}

std::string per_job_csv(const Window& window, const std::vector<queue::JobResult>& results,
                        const std::vector<queue::JobResult>& now) {
  std::ostringstream out;
  out << "job,arrival_s,start_s,finish_s,wait_s,carbon_g,carbon_now_g,energy_kwh,resizes,missed\n"
      << std::setprecision(12);
  for (size_t i = 0; i < results.size(); ++i) {
    const queue::JobResult& each = results[i];
    out << window.jobs[i].index << "," << window.jobs[i].arrival_s << "," << each.start_s << ","
        << each.finish_s << "," << each.wait_s << "," << each.carbon_g << "," << now[i].carbon_g << ","
        << each.energy_kwh << "," << each.resizes << "," << each.missed << "\n";
  }
  return out.str();
}

std::vector<Run> simulate(const Arguments& arguments, const carbon::Trace& trace) {
  std::vector<std::string> policies, forecasts;
  for (const std::string& each : arguments.policies) policies.push_back(queue::canonical_policy_name(each));
  for (const std::string& each : arguments.forecasts)
    forecasts.push_back(carbon::canonical_forecaster_name(each));
  if (!arguments.per_job.empty() && policies.size() * forecasts.size() * arguments.start_hours.size() != 1) {
    throw_user_error(
        "--per-job writes the jobs of one run; name one policy, one forecast and one start hour");
  }
  const queue::ScalingProfile scaling = arguments.scaling.empty()
                                            ? queue::ScalingProfile()
                                            : queue::read_scaling(arguments.scaling, arguments.profile);
  const std::vector<queue::Job> jobs = queue::read_jobs(arguments.jobs, rules_of(arguments));
  warn_of_deadlines(jobs);
  const queue::ReplayOptions options{.capacity = arguments.capacity,
                                     .switch_s = static_cast<int64_t>(arguments.switch_seconds),
                                     .watts_per_cpu = arguments.watts_per_cpu};
  std::vector<std::unique_ptr<carbon::Forecaster>> forecasters;
  for (const std::string& each : forecasts) {
    forecasters.push_back(carbon::make_forecaster(each, {trace.values, trace.step_s, trace.start_unix_s},
                                                  {arguments.noise, arguments.seed}));
  }
  const auto oracle = carbon::make_forecaster("oracle", {trace.values, trace.step_s, trace.start_unix_s});
  std::vector<Run> runs;
  for (const int64_t start_hour : arguments.start_hours) {
    const Window window = window_of(arguments, trace, jobs, start_hour);
    GridForecasts truth(*oracle, window.first_step, trace.step_s);  // which running at once does not look at
    const auto now =
        queue::replay(window.jobs, window.grid, *queue::make_policy("now"), truth, scaling, options);
    const queue::Summary baseline = queue::summarize(now);
    for (size_t f = 0; f < forecasts.size(); ++f) {
      GridForecasts source(*forecasters[f], window.first_step, trace.step_s);
      for (const std::string& policy : policies) {
        const auto results =
            queue::replay(window.jobs, window.grid, *queue::make_policy(policy), source, scaling, options);
        Run run{start_hour,         policy,         forecasts[f], queue::summarize(results), 1,
                window.jobs.size(), window.left_out};
        run.relative_to_now = run.summary.carbon_g / baseline.carbon_g;
        runs.push_back(run);
        if (!arguments.per_job.empty())
          write_file_atomic(arguments.per_job, per_job_csv(window, results, now));
      }
    }
  }
  return runs;
}

nlohmann::ordered_json to_json(const Arguments& arguments, const carbon::Trace& trace, const Run& run) {
  nlohmann::ordered_json json;
  json["basis"] = "simulated";
  json["zone"] = trace.zone;
  json["signal"] = trace.signal;
  json["year"] = arguments.year ? *arguments.year : std::stoi(trace.first_day().substr(0, 4));
  json["start_hour"] = run.start_hour;
  json["days"] = arguments.days;
  json["policy"] = run.policy;
  json["forecast"] = run.forecast;
  json["capacity"] =
      arguments.capacity ? nlohmann::ordered_json(*arguments.capacity) : nlohmann::ordered_json();
  json["switch_seconds"] = arguments.switch_seconds;
  json["jobs"] = run.jobs;
  json["jobs_left_out"] = run.jobs_left_out;
  json["carbon_g"] = run.summary.carbon_g;
  json["carbon_relative_to_now"] = run.relative_to_now;
  json["energy_kwh"] = run.summary.energy_kwh;
  json["mean_wait_s"] = run.summary.mean_wait_s;
  json["p95_wait_s"] = run.summary.p95_wait_s;
  json["deadline_misses"] = run.summary.deadline_misses;
  json["resizes"] = run.summary.resizes;
  return json;
}

// Grams as people read them.
std::string grams(double value) {
  if (value >= 1e6) return format_fixed(value / 1e6, 3) + " t";
  return value >= 1e3 ? format_fixed(value / 1e3, 3) + " kg" : format_fixed(value, 1) + " g";
}

std::string wait(double seconds) {
  return seconds == 0 ? "none" : format_duration(seconds);
}

void print_table(const Arguments& arguments, const carbon::Trace& trace, const std::vector<Run>& runs) {
  std::cout << "zone " << trace.zone << ", " << trace.signal << " intensity, recorded " << trace.first_day()
            << " to " << trace.last_day() << "; " << runs.front().jobs << " jobs of " << arguments.jobs;
  if (runs.front().jobs_left_out > 0) std::cout << " (" << runs.front().jobs_left_out << " left out)";
  std::cout << ", " << arguments.days << " days; simulated\n\n"
            << std::setw(6) << "hour"
            << "  " << std::left << std::setw(15) << "policy" << std::setw(13) << "forecast" << std::right
            << std::setw(12) << "carbon" << std::setw(8) << "of now" << std::setw(12) << "energy kWh"
            << std::setw(11) << "mean wait" << std::setw(11) << "95 % wait" << std::setw(8) << "missed"
            << std::setw(9) << "resizes"
            << "\n";
  for (const Run& run : runs) {
    const queue::Summary& s = run.summary;
    std::cout << std::setw(6) << run.start_hour << "  " << std::left << std::setw(15) << run.policy
              << std::setw(13) << run.forecast << std::right << std::setw(12) << grams(s.carbon_g)
              << std::setw(8) << format_fixed(run.relative_to_now, 4) << std::setw(12)
              << format_fixed(s.energy_kwh, 3) << std::setw(11) << wait(s.mean_wait_s) << std::setw(11)
              << wait(s.p95_wait_s) << std::setw(8) << s.deadline_misses << std::setw(9) << s.resizes << "\n";
  }
}

void run_simulate(const Arguments& arguments) {
  const carbon::Trace trace = trace_of(arguments);
  const std::vector<Run> runs = simulate(arguments, trace);
  if (!arguments.json) {
    print_table(arguments, trace, runs);
    return;
  }
  nlohmann::ordered_json json;
  if (runs.size() == 1) {
    json = to_json(arguments, trace, runs.front());
  } else {
    auto& list = json["runs"] = nlohmann::ordered_json::array();
    for (const Run& run : runs) list.push_back(to_json(arguments, trace, run));
  }
  std::cout << json.dump(2) << "\n";
}

}  // namespace

void add_queue_simulate_command(CLI::App& queue) {
  auto a = std::make_shared<Arguments>();
  CLI::App* command =
      queue.add_subcommand("simulate", "Replay jobs against a recorded grid and count carbon and waiting");
  command
      ->add_option("--jobs", a->jobs, "CSV of jobs: arrival_s, length_s, cpus [, deadline_s]; plain or .gz")
      ->required();
  command->add_option("--carbon", a->carbon, "CSV of the grid's intensity by hour or less; plain or .gz")
      ->required();
  command->add_option("--year", a->year, "Year of the trace in which the replay begins (default: its first)")
      ->check(CLI::Range(1900, 2200));
  command
      ->add_option("--start-hour", a->start_hours,
                   "Hour of the year at which time 0 of the jobs lies; several with commas")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{8783}))
      ->capture_default_str();
  command->add_option("--days", a->days, "Jobs that arrive within so many days are replayed, each to its end")
      ->check(CLI::Range(int64_t{1}, int64_t{36600}))
      ->capture_default_str();
  command
      ->add_option("--policy", a->policies,
                   "now, lowest_slot, lowest_window, carbon_time, ecovisor, wait_awhile, elastic or own; "
                   "several with commas")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--forecast", a->forecasts, "oracle, persistence, seven_day or own; several with commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--capacity", a->capacity, "cpus that exist (default: as many as are asked for)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command
      ->add_option(
          "--slack-hours", a->slack_hours,
          "Longest wait of every job (default: 6 for jobs under 2 h, 24 for others; deadline_s beats both)")
      ->check(CLI::Range(0.0, 87840.0));
  command
      ->add_option("--lengths", a->lengths,
                   "What lowest_window and carbon_time take for a job's length: queue_mean (of jobs under 2 "
                   "h, and of others) or known")
      ->capture_default_str();
  command
      ->add_option("--switch-seconds", a->switch_seconds,
                   "Time at full power without progress after a pause or a change of size")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  command->add_option("--scaling", a->scaling,
                      "CSV of speed and power by number of workers, for elastic and own");
  command->add_option("--profile", a->profile, "Profile of that file that all jobs have");
  command->add_option("--scope", a->scope, "Emissions that count: lifecycle or direct")
      ->capture_default_str();
  command
      ->add_option("--fill-gaps", a->fill_gaps,
                   "Fill gaps of the trace of at most so many steps instead of refusing them")
      ->check(CLI::Range(int64_t{0}, int64_t{168}))
      ->capture_default_str();
  command->add_option("--watts-per-cpu", a->watts_per_cpu, "Power of a running job, per cpu")
      ->check(CLI::Range(1e-6, 1e9))
      ->capture_default_str();
  command->add_option("--noise", a->noise, "Noise on the oracle's forecast, as a share of the trace's mean")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--seed", a->seed, "Seed of that noise")->capture_default_str();
  command->add_option("--per-job", a->per_job, "Write what came out for each job to this CSV (one run)");
  command->add_flag("--json", a->json, "Print JSON");
  command->callback([a] { run_simulate(*a); });
}

}  // namespace moebius::cli
