#include "energy/run_ledger.h"

#include <time.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/concat.h"
#include "base/log.h"
#include "energy/phase_ledger.h"

namespace moebius::energy {
namespace {

// A sample may take this share of the time to the next, of one thread.
constexpr double kMaxSampleShare = 0.002;

double process_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// One device's books: joules by phase from its PhaseLedger, grams window by window.
struct Book {
  Book(bool counts, std::string how, bool is_estimate)
      : ledger({.has_counter = counts}),
        method(std::move(how)),
        estimated(is_estimate),
        has_counter(counts) {}

  PhaseLedger ledger;
  std::string method;
  bool estimated, has_counter;
  double grams = 0;
  bool grams_known = true;
  double last_counter = -1;           // as seen; only changes go on
  std::optional<double> counter_now;  // absent: unreadable, or not believed (energy/counter_track.h)

  void see_counter(double seconds, std::optional<double> joules) {
    counter_now = joules;
    if (!joules || *joules == last_counter) return;
    last_counter = *joules;
    ledger.add_counter(seconds, *joules);
  }
};

}  // namespace

double sample_interval(double cost_seconds, double aim_seconds) {
  return std::max(aim_seconds, cost_seconds / kMaxSampleShare);
}

struct RunLedger::State {
  RunLedgerOptions options;
  EnergyCounter counter;
  std::string uuid;
  double begin_seconds = 0, begin_cpu_seconds = 0;
  double counter_due = 0;  // when the GPU's counter is read next; of the sampling thread alone

  mutable std::mutex mutex;  // guards what follows
  std::optional<Book> gpu, host;
  double spans_until = 0;
  GpuState gpu_state;
  Cost cost;
  bool finished = false, warned_of_grid = false;

  std::condition_variable_any stopping;
  std::jthread thread;  // last member: it is joined before the others go

  explicit State(RunLedgerOptions given)
      : options(std::move(given)), counter(EnergyCounter::open(options.pci_bus_id, options.sources)) {}

  double now() const { return options.sources.clock->seconds(); }

  void open_books() {
    if (const auto& device = counter.device()) {
      uuid = device->uuid().value_or("");
      if (counter.counts_device()) {
        gpu.emplace(true, concat(counter.device_method(), ", shared by sampled power"), false);
      } else if (const auto power = device->instant_power()) {
        gpu.emplace(false,
                    concat("NVML power of the ", power_scope_name(power->scope),
                           ", sampled and integrated; no energy counter (", counter.device_method(), ")"),
                    false);
      }
    }
    if (counter.counts_host()) {
      host.emplace(true, counter.host_method(), false);
    } else if (options.cpu_watts_per_core > 0) {
      host.emplace(true,
                   concat("estimate: processor time of this process x ", options.cpu_watts_per_core,
                          " W per busy core (energy.cpu_watts_per_core), not a reading"),
                   true);
    }
  }

  // Reads outside the lock: NVML may take its time, and the training thread must not wait for it. Seconds
  // that it took, without the GPU's counter and clocks, which have an interval of their own.
  double take_sample(bool all = false) {
    const double begin = now();
    EnergyCounter::Reading reading;
    if (host && !host->estimated) reading.host_joules = counter.host_joules();
    const bool counts = gpu && gpu->has_counter && (all || begin >= counter_due);
    double counted_at = begin, rare_cost = 0;
    std::optional<double> sm_mhz, memory_mhz;
    if (gpu && (counts || begin >= counter_due)) {
      const double rare_begin = now();
      if (counts) reading.device_joules = counter.device_joules();
      counted_at = now();
      const auto mhz = [&](ClockDomain domain) {
        const Result<int> clock = counter.device()->clock_mhz(domain);
        return clock ? std::optional<double>(*clock) : std::nullopt;
      };
      sm_mhz = mhz(ClockDomain::kSm);
      memory_mhz = mhz(ClockDomain::kMemory);
      rare_cost = now() - rare_begin;
      counter_due = now() + sample_interval(rare_cost, options.counter_seconds);
    }
    std::optional<double> watts;
    if (gpu) {
      if (const auto power = counter.device()->instant_power()) {
        watts = power->watts;
      } else if (const auto average = counter.device()->average_power()) {
        watts = average->watts;
      }
    }
    const double cpu = process_cpu_seconds() - begin_cpu_seconds;
    const double end = now();
    const std::scoped_lock lock(mutex);
    if (gpu) {
      gpu_state.watts = watts;
      if (rare_cost > 0 || counts) {
        gpu_state.sm_mhz = sm_mhz;
        gpu_state.memory_mhz = memory_mhz;
      }
      if (watts) gpu->ledger.add_power(end, *watts);
      if (counts) gpu->see_counter(counted_at, reading.device_joules);
    }
    if (host) {
      host->see_counter(
          end, host->estimated ? std::optional(cpu * options.cpu_watts_per_core) : reading.host_joules);
    }
    ++cost.num_samples;
    cost.seconds += end - begin;
    cost.share = end > begin_seconds ? cost.seconds / (end - begin_seconds) : 0;
    return end - begin - rare_cost;
  }

  void settle_book(std::optional<Book>& book, double until, bool finish) {
    if (!book) return;
    for (const PhaseLedger::Window& window : book->ledger.settle(until, finish)) {
      const auto intensity = options.grid.at((window.begin_seconds + window.end_seconds) / 2 - begin_seconds);
      if (intensity) {
        book->grams += sum_of(window.joules) * *intensity / kJoulesPerKwh;
      } else {
        book->grams_known = false;
        if (options.grid && !warned_of_grid) {
          warned_of_grid = true;
          log_warn("grams of CO2 are left out from here on: the carbon trace ends (",
                   options.grid.description(), ")");
        }
      }
    }
  }

  void settle_until(double until, bool finish) {
    settle_book(gpu, until, finish);
    settle_book(host, until, finish);
  }

  std::optional<Part> part_of(const std::optional<Book>& book) const {
    // A counter that lost its trust takes the phases with it: part of a sum is not the sum.
    if (!book || (book->has_counter && !book->counter_now)) return std::nullopt;
    Part part;
    part.joules = book->ledger.joules();
    part.seconds = book->ledger.seconds();
    part.total_joules = sum_of(part.joules);
    if (part.total_joules <= 0) return std::nullopt;  // nothing settled, or nothing readable
    part.counter_joules = book->counter_now;
    part.sampled_joules = book->ledger.sampled_joules();
    if (options.grid && book->grams_known) part.grams = book->grams;
    part.method = book->method;
    part.estimated = book->estimated;
    return part;
  }
};

RunLedger::RunLedger(RunLedgerOptions options) : state_(std::make_unique<State>(std::move(options))) {
  State& state = *state_;
  state.begin_seconds = state.now();
  state.spans_until = state.begin_seconds;
  state.begin_cpu_seconds = process_cpu_seconds();
  state.open_books();
  // The counters' own zero is the first point; it is no reading yet.
  for (std::optional<Book>* book : {&state.gpu, &state.host}) {
    if (!*book || !(*book)->has_counter) continue;
    (*book)->see_counter(state.begin_seconds, 0);
    (*book)->counter_now.reset();
  }
  if (!state.options.background || (!state.gpu && !state.host)) return;
  state.thread = std::jthread([&state](const std::stop_token& stop) {
    std::mutex mutex;
    std::unique_lock lock(mutex);
    double wait = state.options.sample_seconds;
    while (!state.stopping.wait_for(lock, stop, std::chrono::duration<double>(wait),
                                    [&] { return stop.stop_requested(); })) {
      const double cost = state.take_sample();
      wait = sample_interval(cost, state.options.sample_seconds);
    }
  });
}

RunLedger::~RunLedger() = default;

void RunLedger::add(const PhaseSpan& span) {
  const std::scoped_lock lock(state_->mutex);
  if (state_->gpu) state_->gpu->ledger.add_span(span);
  if (state_->host) state_->host->ledger.add_span(span);
  state_->spans_until = std::max(state_->spans_until, span.end_seconds);
}

void RunLedger::sample() {
  state_->take_sample();
}

void RunLedger::settle() {
  const std::scoped_lock lock(state_->mutex);
  state_->settle_until(state_->spans_until, /*finish=*/false);
}

void RunLedger::finish() {
  if (state_->finished) return;
  state_->finished = true;
  if (state_->thread.joinable()) {
    state_->thread.request_stop();
    state_->thread.join();
  }
  state_->take_sample(/*all=*/true);
  const std::scoped_lock lock(state_->mutex);
  state_->settle_until(state_->now(), /*finish=*/true);
}

RunLedger::Totals RunLedger::totals() const {
  const std::scoped_lock lock(state_->mutex);
  return {state_->part_of(state_->gpu), state_->part_of(state_->host), state_->now() - state_->begin_seconds};
}

EnergyCounter::Reading RunLedger::recent_joules() const {
  const std::scoped_lock lock(state_->mutex);
  EnergyCounter::Reading reading;
  if (state_->gpu) reading.device_joules = state_->gpu->counter_now;
  if (state_->host && !state_->host->estimated) reading.host_joules = state_->host->counter_now;
  return reading;
}

const std::string& RunLedger::method() const {
  return state_->counter.method();
}

const GridIntensity& RunLedger::grid() const {
  return state_->options.grid;
}

std::optional<double> RunLedger::intensity_now() const {
  return state_->options.grid.at(state_->now() - state_->begin_seconds);
}

RunLedger::GpuState RunLedger::gpu_state() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->gpu_state;
}

const std::string& RunLedger::gpu_uuid() const {
  return state_->uuid;
}

const std::optional<NvmlDevice>& RunLedger::gpu() const {
  return state_->counter.device();
}

RunLedger::Cost RunLedger::cost() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->cost;
}

}  // namespace moebius::energy
