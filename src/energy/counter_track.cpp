#include "energy/counter_track.h"

#include "base/check.h"
#include "base/concat.h"

namespace moebius::energy {

CounterTrack::CounterTrack(Limits limits, double seconds, double joules)
    : limits_(limits), seconds_(seconds), joules_(joules), moved_seconds_(seconds) {
  MOEBIUS_CHECK(limits.max_watts > 0);
}

void CounterTrack::advance(double seconds, double joules) {
  MOEBIUS_CHECK_GE(seconds, seconds_);
  if (!doubt_.empty()) return;
  const double elapsed = seconds - seconds_;
  const double most = limits_.max_watts * (elapsed + kStepSeconds);
  double spent = joules - joules_;
  const bool wraps = limits_.range_joules < std::numeric_limits<double>::infinity();
  if (wraps && elapsed > longest_gap_seconds()) {
    doubt_ = concat("was not read for ", elapsed, " s, in which it may wrap more than once");
  } else if (spent < 0 && !(wraps && spent + limits_.range_joules <= most)) {
    doubt_ = concat("went backwards, from ", joules_, " J to ", joules, " J");
  } else {
    if (spent < 0) spent += limits_.range_joules;
    if (spent > most) {
      doubt_ = concat("jumped by ", spent, " J in ", elapsed, " s");
    } else if (spent > 0) {
      moved_ = true;
      moved_seconds_ = seconds;
      total_joules_ += spent;
    } else if (seconds - moved_seconds_ >= kStandstillSeconds) {
      doubt_ = concat("has stood at ", joules, " J for ", seconds - moved_seconds_, " s");
    }
  }
  seconds_ = seconds;
  joules_ = joules;
}

std::optional<double> CounterTrack::joules() const {
  if (!moved_ || !doubt_.empty()) return std::nullopt;
  return total_joules_;
}

}  // namespace moebius::energy
