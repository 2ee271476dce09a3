// What a long job shows while it runs. On a terminal: one live line that is rewritten in place and steps
// aside for log lines and notes. Otherwise: a plain line every `log_every` steps.
//
//   step 120/1000   loss 2.31   9.12k tokens/s   1.20 GiB   eta 3m 07s
//
// Thread-safe. One live Progress at a time.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace moebius::telemetry {

// (name, value), shown as "name value"; just the value when the name is empty. The most important first: a
// narrow terminal drops the last ones.
using ProgressFields = std::vector<std::pair<std::string, std::string>>;

struct ProgressOptions {
  std::string unit = "step";
  int64_t total = 0;       // 0: unknown, no ETA
  int64_t first = 0;       // steps that were done before (a resumed run)
  int64_t log_every = 10;  // plain lines
  int fd = STDERR_FILENO;
  std::optional<bool> live;      // default: whether fd is a terminal that can move its cursor
  double redraw_seconds = 0.1;   // live lines are not drawn more often
  const Clock* clock = nullptr;  // default: the system's
};

class Progress {
 public:
  explicit Progress(ProgressOptions options);
  // Leaves the last line on the screen.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Whether update() with this step would show something: lets the caller skip making fields (and, on a GPU,
  // waiting for values).
  bool due(int64_t step) const;
  void update(int64_t step, const ProgressFields& fields);

  // Whole lines that stay (a validation result, a sample of text).
  void note(std::string_view text);

  // Draws the last state and ends the line. Later updates are ignored.
  void finish();

  bool live() const { return live_; }
  // Seconds until `total` by the pace of the recent steps; none while unknown.
  std::optional<double> eta_seconds() const;

 private:
  bool due_locked(int64_t step) const;
  std::string compose(int64_t step, const ProgressFields& fields, size_t width) const;
  std::optional<double> eta_locked() const;
  void put(std::string_view text) const;
  void hide_line() const;
  void draw_line() const;

  ProgressOptions options_;
  bool live_;
  mutable std::mutex mutex_;
  bool finished_ = false;
  double last_draw_ = -1e300;
  int64_t step_ = 0;
  ProgressFields fields_;
  bool has_state_ = false;
  std::deque<std::pair<double, int64_t>> history_;  // (time, step), for the pace
};

}  // namespace moebius::telemetry
