// Which phase a run's device was in, and when. Marks are set where the host queues work; what is recorded is
// when the device comes by:
//   CPU  the host's own clock;
//   GPU  an event with a time on the current stream. Times between events are the device's; they are laid on
//        the host's clock from a synchronisation at the start, and kept to it: no event can lie in the
//        future, and when the host has waited for the last one, that one is now.
// A mark costs one clock reading or one event (some microseconds). One thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <deque>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "energy/phase.h"

namespace moebius::train {

class PhaseTimer {
 public:
  // `clock` (also that of the ledger) outlives the timer. Waits for the device once. With `on` false it does
  // nothing, and there are no spans.
  explicit PhaseTimer(at::Device device, const Clock& clock = system_clock(), bool on = true);

  // From here on the device is in `phase`, until the next mark.
  void mark(energy::Phase phase);
  // Spans that ended since the last call. `waited`: the host was held up until the device had done what came
  // before the last marks.
  std::vector<energy::PhaseSpan> take(bool waited);
  // Waits for the device and ends the open span.
  std::vector<energy::PhaseSpan> finish();

 private:
  struct Mark {
    energy::Phase phase;
    double seconds = 0;               // CPU
    std::optional<c10::Event> event;  // GPU
  };
  c10::Event event_now() const;

  at::Device device_;
  const Clock& clock_;
  bool on_;
  std::deque<Mark> marks_;  // the first is the phase that is open
  double opened_ = 0;       // when it began, on the host's clock
};

}  // namespace moebius::train
