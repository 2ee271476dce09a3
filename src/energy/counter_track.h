// One cumulative energy counter, followed from a start: unwrapped, and doubted. Counters in the field are
// missing in virtual machines and then read as zero, stand still, are reset with the driver, and wrap; a
// run's energy must be right or absent. Pure arithmetic; not thread-safe.
#pragma once

#include <limits>
#include <optional>
#include <string>

namespace moebius::energy {

class CounterTrack {
 public:
  struct Limits {
    double range_joules = std::numeric_limits<double>::infinity();  // wraps to 0 behind this
    double max_watts = 0;  // more than what is measured can ever draw
  };
  // A device that is on always draws something: a counter that shows no change for this long does not work.
  static constexpr double kStandstillSeconds = 10;
  // Counters advance in steps of up to some hundred milliseconds: a step's whole energy may appear at once.
  static constexpr double kStepSeconds = 1;

  CounterTrack(Limits limits, double seconds, double joules);

  // A further reading; time never goes backwards. A doubt is final: `joules` stays absent after it.
  void advance(double seconds, double joules);

  // Since the start; absent until the counter has moved and after a doubt.
  std::optional<double> joules() const;
  // What the counter did that one cannot trust; empty while all is well.
  const std::string& doubt() const { return doubt_; }

  // Reading at least this often leaves no wrap unseen; infinite for a counter that does not wrap.
  double longest_gap_seconds() const { return limits_.range_joules / limits_.max_watts; }

 private:
  Limits limits_;
  double seconds_, joules_;  // last reading
  double moved_seconds_;     // when it last moved, or the start
  double total_joules_ = 0;
  bool moved_ = false;
  std::string doubt_;
};

}  // namespace moebius::energy
