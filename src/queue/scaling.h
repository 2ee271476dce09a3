// How the speed and power of a job grow with its workers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moebius::queue {

// Relative to one worker: speed(1) = power(1) = 1. A job without a profile has one size.
class ScalingProfile {
 public:
  ScalingProfile() = default;
  // speeds[n - 1] and powers[n - 1] belong to n workers, in any unit.
  ScalingProfile(const std::vector<double>& speeds, const std::vector<double>& powers);

  int max_workers() const { return static_cast<int>(speed_.size()) - 1; }
  double speed(int workers) const { return speed_[workers]; }  // 0 workers: 0
  double power(int workers) const { return power_[workers]; }
  double max_speed() const { return max_speed_; }
  int fastest() const { return fastest_; }  // the fewest workers that reach max_speed()

 private:
  std::vector<double> speed_{0, 1}, power_{0, 1};
  double max_speed_ = 1;
  int fastest_ = 1;
};

// Profile `name` of a CSV with profile, workers (1, 2, 3, ... in this order), throughput_per_s, power_w (of
// all workers together). With an empty name the file's only profile. UserError naming file, line, column and
// value otherwise.
ScalingProfile read_scaling(const std::filesystem::path& file, const std::string& name = {});

}  // namespace moebius::queue
