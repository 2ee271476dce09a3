#include "energy/powerd/live_governor.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/log.h"
#include "energy/clock_control.h"

namespace moebius::energy::powerd {

namespace {
constexpr double kLeaseSeconds = 120, kRenewSeconds = 30;
constexpr double kFurthest = 0.5;  // slowdown of plans that are kept at all

bool in_step(const std::string& phase) {
  return phase != "checkpoint" && phase != "evaluation";
}
}  // namespace

clocks::ClockTable step_table(const std::filesystem::path& profile, const std::string& gpu_name) {
  const std::vector<clocks::ClockTable> tables = clocks::read_clock_tables(profile);
  std::string models;
  const clocks::ClockTable* own = nullptr;
  for (const clocks::ClockTable& table : tables) {
    models += concat(models.empty() ? "" : ", ", table.gpu);
    if (table.gpu == gpu_name && table.knob == "MHz" && !table.pipelined) own = &table;
  }
  if (own == nullptr)
    throw_user_error("energy.governor_profile ", profile.string(), " is of ", models, ", and this GPU is a ",
                     gpu_name, "; make one with `moebius energy profile`");
  clocks::ClockTable result;
  result.id = result.gpu = own->gpu;
  result.knob = own->knob;
  result.switch_seconds = own->switch_seconds;
  clocks::PhaseCurve& step = result.phases.emplace_back();
  step.phase = "step";
  for (const clocks::Setting& candidate : own->phases.front().settings) {
    clocks::Setting sum{candidate.knob, 0, 0};
    bool everywhere = true;
    for (const clocks::PhaseCurve& curve : own->phases) {
      if (!in_step(curve.phase)) continue;
      const clocks::Setting& setting = curve.settings[nearest_setting(curve, candidate.knob)];
      everywhere = everywhere && setting.knob == candidate.knob;
      sum.seconds += setting.seconds;
      sum.joules += setting.joules;
    }
    if (everywhere && sum.seconds > 0) step.settings.push_back(sum);
  }
  if (step.settings.empty())
    throw_user_error(
        "energy.governor_profile ", profile.string(),
        " has no clock at which all phases were recorded; make it anew with `moebius energy profile`");
  return result;
}

void check_governor(const LiveOptions& options) {
  if (options.mode == clocks::Mode::kOff) return;
  if (options.gpu_name == "cpu")
    throw_user_error(
        "energy.governor is ", clocks::mode_name(options.mode),
        ", but the run is on the CPU, whose clocks are not governed; set energy.governor to off");
  if (options.mode == clocks::Mode::kFixed && options.fixed_mhz > 0) return;
  if (options.profile.empty())
    throw_user_error(
        "energy.governor is ", clocks::mode_name(options.mode),
        ", which needs a profile of the GPU: make one with `moebius energy profile` and name it in "
        "energy.governor_profile",
        options.mode == clocks::Mode::kFixed ? ", or set energy.governor_mhz" : "");
  step_table(options.profile, options.gpu_name);
}

LiveGovernor::LiveGovernor(const LiveOptions& options, std::optional<NvmlDevice> device)
    : options_(options), device_(std::move(device)) {
  if (options_.mode == clocks::Mode::kOff) return;
  if (!device_) {
    read_only("NVML does not show the GPU");
    return;
  }
  uuid_ = device_->uuid().value_or("");
  if (!options_.profile.empty()) {
    table_ = step_table(options_.profile, options_.gpu_name);
    if (table_.switch_seconds >= 0) switch_seconds_ = table_.switch_seconds;
  }
  auto client = PowerClient::connect(options_.socket);
  if (!client) {
    read_only(client.error().message);
    return;
  }
  client_.emplace(std::move(client).value());
}

void LiveGovernor::read_only(const std::string& why) {
  if (why_read_only_.empty()) log_warn("the clock governor may only read, clocks stay as they are: ", why);
  why_read_only_ = why;
  client_.reset();
  governor_.reset();
  locked_mhz_ = 0;
}

void LiveGovernor::plan_anew() {
  if (options_.mode == clocks::Mode::kFixed && options_.fixed_mhz > 0) return;
  usable_ = table_;
  const double highest = table_.phases[0].settings.back().knob;  // stands for default clocks
  std::erase_if(usable_.phases[0].settings, [&](const clocks::Setting& setting) {
    return setting.knob != highest && bad_targets_.contains(static_cast<int>(std::lround(setting.knob)));
  });
  clocks::GovernorOptions governed;
  governed.mode = options_.mode;
  governed.epsilon = options_.epsilon;
  governed.switch_seconds = switch_seconds_;
  governor_.emplace(make_plans(usable_, switch_seconds_, std::max(kFurthest, 2 * options_.epsilon)),
                    governed);
  governor_->set_base_seconds(base_seconds_);
}

bool LiveGovernor::set(int mhz) {
  if (mhz == locked_mhz_) return true;
  const Result<void> done = mhz == 0 ? client_->reset(uuid_) : client_->lock(uuid_, mhz, kLeaseSeconds);
  if (!done) {
    if (done.error().kind != ErrorKind::kInvalid) {
      read_only(done.error().message);
      return false;
    }
    log_warn("clock governor: ", done.error().message, "; it is not asked for again");
    bad_targets_.insert(mhz);
    return false;
  }
  locked_mhz_ = mhz;
  renewed_ = steady_seconds();
  ++num_switches_;
  if (mhz == 0 || !tried_.insert(mhz).second) return true;
  const Result<double> took = wait_for_clock(*device_, mhz, options_.longest_switch_seconds);
  if (took) {
    switch_seconds_ = std::max(*took, table_.switch_seconds);
    return true;
  }
  log_warn("clock governor: ", took.error().message, "; it is not asked for again");
  bad_targets_.insert(mhz);
  if (const Result<void> back = client_->reset(uuid_); !back) read_only(back.error().message);
  locked_mhz_ = 0;
  return false;
}

void LiveGovernor::follow_plan() {
  // Every target that turns out bad leaves one fewer.
  while (client_ && governor_) {
    const clocks::Plan& plan = governor_->plan();
    const auto& settings = usable_.phases[0].settings;
    const size_t chosen = plan.settings.at(0);
    const int mhz = chosen + 1 == settings.size() ? 0 : static_cast<int>(std::lround(settings[chosen].knob));
    if (set(mhz) || !client_) return;
    plan_anew();
  }
}

void LiveGovernor::after_step(double seconds) {
  if (options_.mode == clocks::Mode::kOff || !client_) return;
  if (steady_seconds() - renewed_ > kRenewSeconds && locked_mhz_ > 0) {
    renewed_ = steady_seconds();
    if (const Result<void> renewed = client_->renew(kLeaseSeconds); !renewed)
      return read_only(renewed.error().message);
  }
  if (base_seconds_ == 0) {
    first_steps_.push_back(seconds);
    if (static_cast<int>(first_steps_.size()) < kWarmUpSteps + kBaseSteps) return;
    std::vector<double> measured(first_steps_.begin() + kWarmUpSteps, first_steps_.end());
    std::nth_element(measured.begin(), measured.begin() + kBaseSteps / 2, measured.end());
    base_seconds_ = measured[kBaseSteps / 2];
    if (options_.mode == clocks::Mode::kFixed && options_.fixed_mhz > 0) {
      set(options_.fixed_mhz);
      return;
    }
    plan_anew();
    return follow_plan();
  }
  if (!governor_) return;
  governor_->after_step(seconds);
  follow_plan();
}

std::string LiveGovernor::description() const {
  if (options_.mode == clocks::Mode::kOff) return "off";
  if (!client_) return concat("read-only (", why_read_only_, ")");
  if (base_seconds_ == 0) return "measuring the base";
  if (governor_) return governor_->description();
  return locked_mhz_ > 0 ? concat(locked_mhz_, " MHz") : "default clocks";
}

}  // namespace moebius::energy::powerd
