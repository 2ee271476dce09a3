#include "energy/energy_counter.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log.h"
#include "energy/counter_track.h"

namespace moebius::energy {

namespace {

// More than any card and any CPU package draws; a counter that says more is wrong.
constexpr double kMaxDeviceWatts = 10'000;
constexpr double kMaxPackageWatts = 2'000;

constexpr double kLongestBackgroundSeconds = 60;

// Counters that add up to one value, and how they do.
class Meter {
 public:
  Meter() = default;
  Meter(std::string method, std::string absence) : method_(std::move(method)), absence_(std::move(absence)) {}

  using Read = std::function<Result<double>()>;
  void add(Read read, CounterTrack::Limits limits, double seconds, double joules) {
    counters_.push_back({std::move(read), CounterTrack(limits, seconds, joules)});
  }

  std::optional<double> joules(const Clock& clock) {
    if (counters_.empty()) return std::nullopt;
    std::optional<double> sum = 0.0;
    for (Counter& counter : counters_) {
      const auto read = counter.read();
      if (read) {
        counter.track.advance(clock.seconds(), *read);
        if (!counter.track.doubt().empty()) warn(concat("the counter ", counter.track.doubt()));
      } else {
        warn(read.error().message);
      }
      const auto joules = read ? counter.track.joules() : std::nullopt;
      sum = sum && joules ? std::optional(*sum + *joules) : std::nullopt;
    }
    return sum;
  }

  bool empty() const { return counters_.empty(); }
  double longest_gap_seconds() const {
    double gap = std::numeric_limits<double>::infinity();
    for (const Counter& counter : counters_) gap = std::min(gap, counter.track.longest_gap_seconds());
    return gap;
  }
  std::string method() const { return empty() ? concat("none (", absence_, ")") : method_; }

 private:
  struct Counter {
    Read read;
    CounterTrack track;
  };

  void warn(const std::string& problem) {
    if (warned_) return;
    warned_ = true;
    log_warn("energy is left out of the results: ", method_, ": ", problem);
  }

  std::string method_, absence_;
  std::vector<Counter> counters_;
  bool warned_ = false;
};

// `found`: the device, also when it has no counter.
Meter device_meter(const std::optional<std::string>& pci_bus_id, const EnergySources& sources,
                   std::optional<NvmlDevice>* found) {
  if (!sources.read) return {"", "energy.sensors is false"};
  if (!pci_bus_id) return {"", "no GPU is used"};
  const auto nvml = Nvml::open(sources.nvml_library);
  if (!nvml) return {"", nvml.error().message};
  const auto device = nvml->device_at(*pci_bus_id);
  if (!device) return {"", device.error().message};
  *found = *device;
  const auto joules = device->total_energy_joules();
  if (!joules) return {"", joules.error().message};
  const bool shared = device->mig_enabled().value_or(false);
  Meter meter(
      concat("NVML total energy counter", shared ? " (of the whole card, all its MIG instances)" : ""), "");
  meter.add([device = *device] { return device.total_energy_joules(); }, {.max_watts = kMaxDeviceWatts},
            sources.clock->seconds(), *joules);
  return meter;
}

Meter host_meter(const EnergySources& sources) {
  if (!sources.read) return {"", "energy.sensors is false"};
  const RaplSurvey survey = survey_rapl(sources.powercap);
  std::string method = "RAPL";
  std::vector<std::pair<RaplDomain, double>> counted;
  for (const RaplDomain& domain : survey.domains) {
    if (!domain.counted) continue;
    if (const auto joules = domain.joules(); joules && domain.range_joules > 0) {
      method += concat(counted.empty() ? " " : " + ", domain.name);
      counted.emplace_back(domain, *joules);
    }
  }
  if (counted.empty()) return {"", survey.why.empty() ? "RAPL shows no CPU package" : survey.why};
  Meter meter(method, "");
  for (auto& [domain, joules] : counted) {
    const CounterTrack::Limits limits{.range_joules = domain.range_joules, .max_watts = kMaxPackageWatts};
    meter.add([domain = std::move(domain)] { return domain.joules(); }, limits, sources.clock->seconds(),
              joules);
  }
  return meter;
}

}  // namespace

struct EnergyCounter::State {
  const Clock* clock = nullptr;
  Meter device, host;
  std::optional<NvmlDevice> gpu;
  std::string method;

  std::mutex mutex;  // guards the meters

  std::condition_variable_any stopping;
  std::jthread background;  // last member: it is joined before the others go

  void read_every(double interval_seconds) {
    background = std::jthread([this, interval_seconds](const std::stop_token& stop) {
      std::unique_lock lock(mutex);
      const auto interval = std::chrono::duration<double>(interval_seconds);
      while (!stopping.wait_for(lock, stop, interval, [&] { return stop.stop_requested(); }))
        host.joules(*clock);
    });
  }
};

EnergyCounter EnergyCounter::open(std::optional<std::string> pci_bus_id, const EnergySources& sources) {
  auto state = std::make_unique<State>();
  state->clock = sources.clock;
  state->device = device_meter(pci_bus_id, sources, &state->gpu);
  state->host = host_meter(sources);
  state->method = concat("device: ", state->device.method(), "; host: ", state->host.method());
  if (!state->host.empty()) {
    const double interval = sources.background_seconds.value_or(
        std::min(kLongestBackgroundSeconds, state->host.longest_gap_seconds() / 4));
    if (interval > 0) state->read_every(interval);
  }
  return EnergyCounter(std::move(state));
}

EnergyCounter::EnergyCounter(std::unique_ptr<State> state) : state_(std::move(state)) {}
EnergyCounter::~EnergyCounter() = default;
EnergyCounter::EnergyCounter(EnergyCounter&&) noexcept = default;
EnergyCounter& EnergyCounter::operator=(EnergyCounter&&) noexcept = default;

EnergyCounter::Reading EnergyCounter::joules_since_start() {
  const std::scoped_lock lock(state_->mutex);
  return {state_->device.joules(*state_->clock), state_->host.joules(*state_->clock)};
}

std::optional<double> EnergyCounter::device_joules() {
  const std::scoped_lock lock(state_->mutex);
  return state_->device.joules(*state_->clock);
}

std::optional<double> EnergyCounter::host_joules() {
  const std::scoped_lock lock(state_->mutex);
  return state_->host.joules(*state_->clock);
}

const std::string& EnergyCounter::method() const {
  return state_->method;
}

std::string EnergyCounter::device_method() const {
  return state_->device.method();
}

std::string EnergyCounter::host_method() const {
  return state_->host.method();
}

bool EnergyCounter::counts_device() const {
  return !state_->device.empty();
}

bool EnergyCounter::counts_host() const {
  return !state_->host.empty();
}

const std::optional<NvmlDevice>& EnergyCounter::device() const {
  return state_->gpu;
}

}  // namespace moebius::energy
