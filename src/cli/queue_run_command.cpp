// `moebius queue run`: drives the queue's jobs until it is told to stop, or, with --until-empty, done.
#include <pwd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/http.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "cli/grid_forecasts.h"
#include "cli/queue_command.h"
#include "cli/queue_folder.h"
#include "energy/carbon/feed.h"
#include "energy/carbon/trace.h"
#include "queue/dispatcher.h"
#include "queue/dispatcher_lock.h"
#include "queue/local_engine.h"
#include "queue/slurm_engine.h"
#include "telemetry/exporter.h"

namespace moebius::cli {
namespace {

namespace carbon = energy::carbon;

struct RunArguments {
  std::string queue, carbon, forecast, policy, switch_time = "60s", stop_grace = "10m", metrics_address,
                                               grid_time;
  std::string scope = "lifecycle", url, engine = "local", per_worker = "cpus";
  std::string slurm_rest, slurm_version, slurm_token_file;
  std::vector<std::string> slurm_arguments;
  std::optional<int64_t> capacity;
  bool unlimited = false, until_empty = false;
  double speed = 1, tick_s = 1;
};

// Real time, or a time of a recorded grid that passes `speed` times as fast.
class QueueClock final : public Clock {
 public:
  QueueClock(double start_unix_s, double speed) : start_(start_unix_s), speed_(speed) {}
  double seconds() const override { return speed_ * (steady_seconds() - begin_); }
  double unix_seconds() const override { return start_ + seconds(); }

 private:
  double begin_ = steady_seconds(), start_, speed_;
};

// A recorded grid and forecasts from its past.
struct Replay {
  Replay(const RunArguments& a)
      : trace(carbon::read_trace(
            a.carbon, {.scope = a.scope == "direct" ? carbon::Scope::kDirect : carbon::Scope::kLifecycle})),
        forecaster(carbon::make_forecaster(
            carbon::canonical_forecaster_name(a.forecast.empty() ? "own" : a.forecast),
            {trace.values, trace.step_s, trace.start_unix_s})),
        forecasts(*forecaster, -trace.start_unix_s / trace.step_s, trace.step_s) {}
  carbon::Trace trace;
  std::unique_ptr<carbon::Forecaster> forecaster;
  GridForecasts forecasts;

  double end_s() const {
    return static_cast<double>(trace.start_unix_s + trace.step_s * static_cast<int64_t>(trace.values.size()));
  }
};

carbon::Feed make_feed(const RunArguments& a, const std::filesystem::path& folder) {
  carbon::FeedOptions options;
  options.cache = folder / "grid.json";
  // "provider": its own forecast where it makes one, ours behind its end.
  options.use_provider_forecast = a.forecast.empty() || a.forecast == "provider";
  if (!options.use_provider_forecast) {
    options.forecaster = carbon::canonical_forecaster_name(a.forecast);
    if (options.forecaster == "oracle")
      throw_user_error(
          "--forecast oracle knows the future, which only a recorded grid has; give one with --grid-time");
  }
  const carbon::ProviderOptions provider{
      .url = a.url, .scope = a.scope == "direct" ? carbon::Scope::kDirect : carbon::Scope::kLifecycle};
  return {carbon::make_provider(a.carbon, make_curl_client(), provider), options};
}

// The name that Slurm knows this user by.
std::string user_name() {
  const passwd* entry = ::getpwuid(::geteuid());
  return entry == nullptr ? std::string() : entry->pw_name;
}

std::unique_ptr<queue::SlurmClient> make_slurm(const RunArguments& a) {
  if (a.slurm_rest.empty()) return queue::make_slurm_commands(a.slurm_arguments);
  constexpr size_t kMaxReplyBytes = size_t{512} << 20;  // slurmrestd tells of all jobs, 3 kB each
  return queue::make_slurm_rest({.url = a.slurm_rest,
                                 .token_file = a.slurm_token_file,
                                 .user = user_name(),
                                 .version = a.slurm_version,
                                 .arguments = a.slurm_arguments},
                                make_curl_client(30, kMaxReplyBytes));
}

std::unique_ptr<queue::Engine> make_engine(const RunArguments& a, const std::filesystem::path& folder) {
  if (a.engine == "local") {
    if (!a.slurm_rest.empty()) throw_user_error("--slurm-rest goes with --engine slurm; add that");
    return std::make_unique<queue::LocalEngine>(folder);
  }
  queue::SlurmOptions options;
  // The folder tells queues of one user apart.
  options.queue_name = hash_hex(hash64(std::filesystem::absolute(folder).lexically_normal().string()));
  options.per_worker = a.per_worker;
  auto engine = std::make_unique<queue::SlurmEngine>(folder, std::move(options), make_slurm(a));
  if (const auto reached = engine->reach(); !reached)
    throw_user_error(reached.error().message, "; --engine local runs jobs on this machine");
  return engine;
}

// How the grid's feed does, for dashboards and alerts; and once for people, which intensity it is.
class FeedMetrics {
 public:
  FeedMetrics(telemetry::Registry& registry, queue::QueueMetrics& queue)
      : queue_(queue),
        last_success_(registry.gauge("moebius_grid_feed_last_success_timestamp_seconds",
                                     "When the provider of grid data last answered.")),
        stale_(registry.gauge("moebius_grid_feed_stale",
                              "1 while neither readings nor a forecast of the grid reach the present.")),
        failures_(
            registry.counter("moebius_grid_feed_failures_total", "Requests to the provider that failed.")) {}
  void update(const carbon::Feed& feed, double now_s) {
    if (feed.last_success_s() > 0) last_success_.set(feed.last_success_s());
    stale_.set(feed.is_stale(now_s) ? 1 : 0);
    failures_.add(static_cast<double>(feed.failures() - seen_failures_));
    seen_failures_ = feed.failures();
    if (feed.signal() == told_) return;
    told_ = feed.signal();
    queue_.set_grid(feed.name(), told_);
    log_info("grid data from ", feed.name(), ": ", told_, " intensity");
  }

 private:
  queue::QueueMetrics& queue_;
  telemetry::Gauge &last_success_, &stale_;
  telemetry::Counter& failures_;
  int64_t seen_failures_ = 0;
  std::string told_;
};

void run_queue(const RunArguments& a) {
  queue::Store store(queue_folder(a.queue), queue::Database::Access::kCreate);
  const queue::DispatcherLock lock(store.folder());
  store.database().check_whole();
  std::optional<Replay> replay;
  std::optional<carbon::Feed> feed;
  if (!a.carbon.empty() && !a.grid_time.empty() && !carbon::is_provider_name(a.carbon)) {
    replay.emplace(a);
  } else if (!a.carbon.empty()) {
    feed.emplace(make_feed(a, store.folder()));
  }
  LiveForecasts live(feed ? &*feed : nullptr);
  queue::DispatcherOptions options;
  options.policy = queue::canonical_policy_name(!a.policy.empty()  ? a.policy
                                                : a.carbon.empty() ? "now"
                                                                   : "own");
  if (a.carbon.empty() && options.policy != "now")
    throw_user_error("--policy ", options.policy, " needs --carbon, the grid to go by");
  options.capacity = a.unlimited ? std::nullopt : std::optional(a.capacity.value_or(1));
  options.switch_s = parse_duration(a.switch_time, "--switch-time");
  // Saving takes real time, however fast the grid's passes.
  options.stop_grace_s = a.speed * parse_duration(a.stop_grace, "--stop-grace");
  options.retry_s *= a.speed;
  const double start_s =
      a.grid_time.empty() ? system_clock().unix_seconds() : parse_time(a.grid_time, "--grid-time");
  if (replay) {
    if (start_s < static_cast<double>(replay->trace.start_unix_s) || start_s >= replay->end_s())
      throw_user_error("the time ", iso_time(start_s), " is not in the carbon trace of ", replay->trace.zone,
                       ", which runs from ", replay->trace.first_day(), " to ", replay->trace.last_day(),
                       "; choose one that is with --grid-time");
    log_info("grid ", replay->trace.zone, ", ", replay->trace.signal, " intensity, recorded; forecast ",
             a.forecast.empty() ? "own" : a.forecast);
  }
  const QueueClock clock(start_s, a.speed);
  telemetry::Registry registry;
  queue::QueueMetrics metrics(registry);
  std::optional<telemetry::Exporter> exporter;
  if (!a.metrics_address.empty()) {
    exporter.emplace(registry, a.metrics_address);
    log_info("metrics at ", exporter->url());
  }
  const std::unique_ptr<queue::Engine> engine = make_engine(a, store.folder());
  queue::ForecastSource& forecasts = replay ? static_cast<queue::ForecastSource&>(replay->forecasts)
                                            : static_cast<queue::ForecastSource&>(live);
  queue::Dispatcher dispatcher(store, *engine, forecasts, clock, options, &metrics);
  const InterruptGuard guard("stopping; jobs go on");
  log_info("runs the queue in ", store.folder().string(), ", policy ", options.policy);
  FeedMetrics feed_metrics(registry, metrics);
  if (replay) metrics.set_grid(replay->trace.zone, replay->trace.signal);
  while (!interrupt_requested()) {
    if (replay && clock.unix_seconds() >= replay->end_s())
      throw_user_error("the carbon trace of ", replay->trace.zone, " ends on ", replay->trace.last_day(),
                       " and jobs are left; start earlier with --grid-time. Jobs that run go on");
    if (feed) {
      const double now_s = clock.unix_seconds();
      live.at(now_s, now_s);  // which asks the provider, when that is due
      feed_metrics.update(*feed, now_s);
    }
    dispatcher.tick();
    if (a.until_empty && dispatcher.idle()) return;
    std::this_thread::sleep_for(std::chrono::duration<double>(a.tick_s));
  }
  log_info("stopped; jobs that run go on, and the next `moebius queue run` takes them over");
}

}  // namespace

void add_queue_run_command(CLI::App& parent) {
  CLI::App* command =
      parent.add_subcommand("run", "Start, pause and resume the queue's jobs as the policy says");
  auto a = std::make_shared<RunArguments>();
  add_queue_option(*command, a->queue);
  command->add_option("--carbon", a->carbon,
                      "The grid: electricitymaps:ZONE, gb, watttime:REGION, or a CSV of its intensity");
  command->add_option("--carbon-url", a->url, "Server to ask instead of the provider's own");
  command->add_option("--policy", a->policy,
                      "now, lowest_slot, lowest_window, carbon_time, ecovisor, wait_awhile, elastic or own "
                      "(default: own, without --carbon now)");
  command->add_option("--forecast", a->forecast,
                      "provider, persistence, seven_day or own, and of a recorded grid oracle (default: the "
                      "provider's where it has one, else own)");
  command->add_option("--scope", a->scope, "Emissions that count: lifecycle or direct")
      ->check(CLI::IsMember({"lifecycle", "direct"}))
      ->capture_default_str();
  CLI::Option* capacity =
      command->add_option("--capacity", a->capacity, "Places that jobs share (default: 1)")
          ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--unlimited", a->unlimited, "No limit on what runs at once")->excludes(capacity);
  command->add_option("--switch-time", a->switch_time, "What a pause or a change of size costs a job")
      ->capture_default_str();
  command->add_option("--stop-grace", a->stop_grace, "Time that a job may take to save before it is killed")
      ->capture_default_str();
  command->add_option("--engine", a->engine, "Where jobs run: local (processes of this machine) or slurm")
      ->check(CLI::IsMember({"local", "slurm"}))
      ->capture_default_str();
  command
      ->add_option("--slurm-arg", a->slurm_arguments,
                   "Further argument of sbatch, or with --slurm-rest property of the job: "
                   "--slurm-arg=--partition=gpu")
      ->allow_extra_args(false);
  command->add_option(
      "--slurm-rest", a->slurm_rest,
      "Ask slurmrestd (http://HOST:PORT or unix:SOCKET) instead of Slurm's commands; token in "
      "$SLURM_JWT");
  command->add_option("--slurm-token-file", a->slurm_token_file,
                      "File with that token instead, read anew for each request");
  command->add_option("--slurm-rest-version", a->slurm_version,
                      "Version of its interface: v0.0.38 (default: the highest that both know)");
  command
      ->add_option("--slurm-per-worker", a->per_worker,
                   "What Slurm is asked for, width times workers: cpus or gpus")
      ->check(CLI::IsMember({"cpus", "gpus"}))
      ->capture_default_str();
  command->add_option("--metrics-port", a->metrics_address,
                      "Serve Prometheus metrics on this port (or HOST:PORT); 0 takes a free one");
  command->add_option("--grid-time", a->grid_time,
                      "Replay a recorded grid from this time (UTC) instead of now: 2022-03-01T06:00Z");
  command->add_option("--speed", a->speed, "Seconds of that time in a second")->check(CLI::Range(1e-3, 1e6));
  command->add_option("--tick", a->tick_s, "Seconds between two looks at the jobs")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->add_flag("--until-empty", a->until_empty, "End when no job is left that could run");
  command->callback([a] { run_queue(*a); });
}

}  // namespace moebius::cli
