// Joules per phase of one device, out of three recordings of the same stretch of time:
//   spans    which phase ran when,
//   power    momentary watts, sampled,
//   counter  the device's own energy counter, which is right in sum and too coarse for phases (NVML renews it
//            every 20 ms to 100 ms; a phase may take 5 ms).
//
// Method. Each sample of power counts for the phase that ran when it was taken; a phase's power over the
// window's mean, averaged over its samples (earlier windows fade, a tenth each), times the time that its
// spans cover gives its share. Means per phase, not the integral along time, since phases are shorter than
// the distance of two samples: over many steps samples fall into every phase at random moments, and holding a
// sample until the next would smear power over the borders. Only windows whose power is the same in both
// halves are learned from and judged by what was learned: in others (a slow first step at low power, phases
// of seconds) power belongs to a time more than to a phase, and the window's own samples count. A phase
// without samples gets the mean of all. Shares of a window between two
// readings of the counter are then scaled to what the counter advanced, so phases add up to the counter and
// only their proportions rest on the samples. Without a counter they are scaled to the integral of the power;
// without power a window is shared by time. Windows are at least `window_seconds` long: the counter shows a
// moment up to one period ago, and in long windows that delay weighs little.
//
// Pure arithmetic; not thread-safe. Memory: what was not settled yet.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "energy/phase.h"

namespace moebius::energy {

class PhaseLedger {
 public:
  struct Options {
    bool has_counter = true;    // else power alone counts
    double window_seconds = 1;  // ignored without power
  };
  explicit PhaseLedger(Options options) : options_(options) {}

  // Each in order of time. A span that begins before its predecessor ended is cut.
  void add_span(const PhaseSpan& span);
  void add_power(double seconds, double watts);
  void add_counter(double seconds, double joules);  // cumulative, when it was seen to have changed

  // One settled window.
  struct Window {
    double begin_seconds = 0, end_seconds = 0;
    PerPhase joules{};
  };
  // Settles what lies before `until`, up to which spans are complete. With `finish` the last window may be
  // short. Time is settled once; windows come in order.
  std::vector<Window> settle(double until, bool finish = false);

  const PerPhase& joules() const { return joules_; }
  const PerPhase& seconds() const { return seconds_; }  // of settled time
  // What the counter advanced over all settled windows; nothing without a counter.
  std::optional<double> counter_joules() const;
  // Integral of the sampled power over that, unscaled: how far sensor and counter agree. Nothing when
  // there was no power.
  std::optional<double> sampled_joules() const;

 private:
  struct Point {
    double seconds = 0, value = 0;
  };
  Window settle_window(double begin, double end, std::optional<double> joules);
  double power_integral(double begin, double end) const;
  PerPhase relative_power(double begin, double end);
  void forget(double before);

  Options options_;
  std::deque<PhaseSpan> spans_;
  std::deque<Point> power_, counter_;
  std::optional<double> settled_until_;  // without a counter
  PerPhase joules_{}, seconds_{};
  PerPhase power_sum_{}, power_weight_{};  // samples of each phase over their window's mean, earlier faded
  double counter_total_ = 0, sampled_total_ = 0;
  bool any_counter_ = false, any_power_ = false;
};

}  // namespace moebius::energy
