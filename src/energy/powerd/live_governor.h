// The governor of a training run: decides as energy/clocks/governor.h does, asks moebius-powerd for what was
// decided, and looks at what came of it. It acts between steps: the phases of a step on a GPU are shorter
// than a change of clock, and the host, which runs ahead, does not know when they begin.
//
//   - The first steps run at default clocks; their median is the base that slowdowns are counted from.
//   - After the first change to a clock, the clock is read until it is there. One that is refused, or that
//   does
//     not come within `longest_switch_seconds`, is a bad target: it is taken out of the profile and what is
//     left is chosen from anew. The longest time seen replaces the profile's switching time.
//   - Where clocks may only be read (no daemon, a read-only one, a user who is not on its list), this is said
//     once and nothing is asked for again.
// The lease is renewed between steps; it ends with the process (energy/powerd/power_service.h). One thread.
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "energy/clocks/governor.h"
#include "energy/nvml.h"
#include "energy/powerd/power_client.h"

namespace moebius::energy::powerd {

struct LiveOptions {
  clocks::Mode mode = clocks::Mode::kOff;
  double epsilon = 0.03;
  int fixed_mhz = 0;                // of mode fixed; 0: by the profile
  std::filesystem::path profile{};  // CSV of `moebius energy profile`
  std::filesystem::path socket{};
  std::string gpu_name{};
  double longest_switch_seconds = 0.5;
};

// The profile's phases put together to one, under the clocks that all of them were recorded at. UserError
// when the profile is of another GPU model, holds none or several, or has no clock common to its phases.
clocks::ClockTable step_table(const std::filesystem::path& profile, const std::string& gpu_name);

// What is wrong with the options, before a run begins; UserError.
void check_governor(const LiveOptions& options);

class LiveGovernor {
 public:
  static constexpr int kWarmUpSteps = 3, kBaseSteps = 10;

  // `device`: the GPU, for reading its clock.
  LiveGovernor(const LiveOptions& options, std::optional<NvmlDevice> device);

  // A step took so long; may change the clock.
  void after_step(double seconds);

  // "off", "read-only (why)", "measuring the base", "1200 MHz and 1410 MHz in turns".
  std::string description() const;
  int locked_mhz() const { return locked_mhz_; }  // 0: default clocks
  int64_t num_switches() const { return num_switches_; }
  const std::set<int>& bad_targets() const { return bad_targets_; }
  double switch_seconds() const { return switch_seconds_; }  // the longest seen, or the profile's

 private:
  void plan_anew();
  void follow_plan();
  // False when the clock could not be had; it is then a bad target, or the governor reads only.
  bool set(int mhz);
  void read_only(const std::string& why);

  LiveOptions options_;
  std::optional<NvmlDevice> device_;
  std::string uuid_;
  std::optional<PowerClient> client_;
  std::string why_read_only_;
  clocks::ClockTable table_, usable_;  // without bad targets
  std::optional<clocks::Governor> governor_;
  std::vector<double> first_steps_;
  double base_seconds_ = 0, switch_seconds_ = 0.1, renewed_ = 0;
  int locked_mhz_ = 0;
  int64_t num_switches_ = 0;
  std::set<int> tried_, bad_targets_;
};

}  // namespace moebius::energy::powerd
