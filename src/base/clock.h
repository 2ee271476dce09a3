// Time as a seam: code that measures or waits takes a Clock, tests pass a FixedClock.
#pragma once

#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>

namespace moebius {

// Seconds of the monotonic clock; only differences mean something.
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds since 1970 as "2031-05-17T09:03:00Z".
inline std::string iso_time(double unix_seconds) {
  const auto whole = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  gmtime_r(&whole, &parts);
  char text[32];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text, length};
}

class Clock {
 public:
  virtual ~Clock() = default;
  virtual double seconds() const = 0;       // monotonic
  virtual double unix_seconds() const = 0;  // wall
  std::string wall_iso() const { return iso_time(unix_seconds()); }
};

class SystemClock final : public Clock {
 public:
  double seconds() const override { return steady_seconds(); }
  double unix_seconds() const override {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
};

inline const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

// Stands still until it is advanced. Not thread-safe.
class FixedClock final : public Clock {
 public:
  explicit FixedClock(double unix_seconds = 0) : start_(unix_seconds) {}
  double seconds() const override { return elapsed_; }
  double unix_seconds() const override { return start_ + elapsed_; }
  void advance(double seconds) { elapsed_ += seconds; }

 private:
  double start_;
  double elapsed_ = 0;
};

}  // namespace moebius
