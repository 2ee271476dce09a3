// How long a device stands still at certain places of its work.
#pragma once

#include <c10/core/Device.h>

#include <memory>

namespace moebius::parallel {

class StallClock {
 public:
  // On a CPU the time of the calling thread counts, on a GPU that of its current stream.
  explicit StallClock(at::Device device);
  ~StallClock();

  // From here to the end of its life the device waits, or goes on at once.
  class Span {
   public:
    explicit Span(StallClock& clock);
    ~Span();
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    struct Begin;
    StallClock& clock_;
    std::unique_ptr<Begin> begin_;
  };

  // The sum of all spans that have ended on the device. Any thread.
  double seconds() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moebius::parallel
