// Watches over exchanges that a device makes by itself: the host only queues them, and would wait for ever,
// for something else, when one of them never ends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "parallel/c10d_base.h"

namespace moebius::parallel {

class CollectiveWatch {
 public:
  // `on_failure` is called once, in a thread of this object, with a text that names the axis, the rank, the
  // collective and its number: one has failed, or has not ended within its time. The time of a collective
  // counts from when it was queued, or from when the one before it on its axis was seen to end. `seconds`:
  // between two looks.
  explicit CollectiveWatch(std::function<void(const std::string& text)> on_failure, double seconds = 0.25);
  ~CollectiveWatch();

  // Any thread. Those of one axis end in the order in which they were added.
  void add(const Place& place, c10::intrusive_ptr<c10d::Work> work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moebius::parallel
