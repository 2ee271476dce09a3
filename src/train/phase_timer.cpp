#include "train/phase_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace moebius::train {

namespace {
// Host and device may be apart by this much before the device's time is moved.
constexpr double kToleranceSeconds = 0.001;
}  // namespace

PhaseTimer::PhaseTimer(at::Device device, const Clock& clock, bool on)
    : device_(device), clock_(clock), on_(on) {
  if (!on_) return;
  mark(energy::Phase::kIdle);
  if (!device_.is_cpu()) marks_.front().event->synchronize();
  opened_ = clock_.seconds();
}

c10::Event PhaseTimer::event_now() const {
  c10::Event event(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  event.record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  return event;
}

void PhaseTimer::mark(energy::Phase phase) {
  if (!on_) return;
  Mark mark{phase, clock_.seconds(), std::nullopt};
  if (!device_.is_cpu()) mark.event.emplace(event_now());
  marks_.push_back(std::move(mark));
}

std::vector<energy::PhaseSpan> PhaseTimer::take(bool waited) {
  std::vector<energy::PhaseSpan> spans;
  while (marks_.size() > 1) {
    const Mark& next = marks_[1];
    if (next.event && !next.event->query()) break;
    const double end =
        next.event ? opened_ + marks_.front().event->elapsedTime(*next.event) / 1e3 : next.seconds;
    spans.push_back({marks_.front().phase, opened_, end});
    opened_ = end;
    marks_.pop_front();
  }
  if (!device_.is_cpu() && !spans.empty()) {
    const double ahead = opened_ - clock_.seconds();
    if (ahead > 0 || (waited && ahead < -kToleranceSeconds)) {
      // The device's clock runs a little differently, or the start was laid wrong: move what is new.
      const double begin = spans.front().begin_seconds;
      for (energy::PhaseSpan& span : spans) {
        span.begin_seconds = std::max(begin, span.begin_seconds - ahead);
        span.end_seconds = std::max(begin, span.end_seconds - ahead);
      }
      if (ahead < 0) spans.front().begin_seconds = begin;
      opened_ -= ahead;
    }
  }
  return spans;
}

std::vector<energy::PhaseSpan> PhaseTimer::finish() {
  if (!on_) return {};
  mark(energy::Phase::kIdle);
  if (!device_.is_cpu()) marks_.back().event->synchronize();
  return take(/*waited=*/true);
}

}  // namespace moebius::train
