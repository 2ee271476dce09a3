#include "parallel/stall_clock.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace moebius::parallel {

struct StallClock::Span::Begin {
  double seconds = 0;
  std::optional<c10::Event> event;  // on a GPU
};

struct StallClock::State {
  // Those that the device has not come to are looked at again; so many may be open.
  static constexpr size_t kMostOpen = 4096;

  // Adds up the spans, in order, that the device has left.
  void settle() {
    while (!open.empty() && open.front().second.query()) {
      sum += open.front().first.elapsedTime(open.front().second) * 1e-3;
      open.pop_front();
    }
  }

  c10::Event record() const {
    const c10::impl::VirtualGuardImpl guard(device.type());
    c10::Event event(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // with its time
    event.record(guard.getStream(device));
    return event;
  }

  at::Device device = at::kCPU;
  std::mutex mutex;
  double sum = 0;
  std::deque<std::pair<c10::Event, c10::Event>> open;
};

StallClock::StallClock(at::Device device) : state_(std::make_unique<State>()) {
  state_->device = device;
}

StallClock::~StallClock() = default;

double StallClock::seconds() const {
  const std::lock_guard lock(state_->mutex);
  state_->settle();
  return state_->sum;
}

StallClock::Span::Span(StallClock& clock) : clock_(clock), begin_(std::make_unique<Begin>()) {
  begin_->seconds = steady_seconds();
  if (!clock.state_->device.is_cpu()) begin_->event.emplace(clock.state_->record());
}

StallClock::Span::~Span() {
  State& state = *clock_.state_;
  if (!begin_->event) {
    const std::lock_guard lock(state.mutex);
    state.sum += steady_seconds() - begin_->seconds;
    return;
  }
  try {
    c10::Event end = state.record();
    const std::lock_guard lock(state.mutex);
    state.open.emplace_back(std::move(*begin_->event), std::move(end));
    if (state.open.size() > State::kMostOpen) state.settle();
  } catch (const std::exception&) {  // the device has failed, which others tell
  }
}

}  // namespace moebius::parallel
