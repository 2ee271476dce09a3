#include "telemetry/progress.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>

#include "base/concat.h"
#include "base/log.h"
#include "base/units.h"

namespace moebius::telemetry {
namespace {

constexpr size_t kHistory = 64;
constexpr char kEraseLine[] = "\r\033[K";

bool can_move_cursor(int fd) {
  const char* terminal = std::getenv("TERM");
  return isatty(fd) && !(terminal != nullptr && std::string_view(terminal) == "dumb");
}

size_t terminal_width(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// Columns, taking every code point as one wide.
size_t columns(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return !continues(c); }));
}

std::string cut(std::string_view text, size_t width) {
  size_t end = 0;
  for (size_t seen = 0; end < text.size(); ++end) {
    if (!continues(text[end]) && seen++ == width) break;
  }
  return std::string(text.substr(0, end));
}

std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; },
      ' ');
  return text;
}

}  // namespace

Progress::Progress(ProgressOptions options)
    : options_(std::move(options)), live_(options_.live.value_or(can_move_cursor(options_.fd))) {
  if (options_.clock == nullptr) options_.clock = &system_clock();
  options_.log_every = std::max<int64_t>(options_.log_every, 1);
  history_.emplace_back(options_.clock->seconds(), options_.first);
  if (!live_) return;
  // The log calls these under its own lock; no member may log while it holds mutex_.
  set_log_line_owner(
      [this] {
        const std::lock_guard<std::mutex> lock(mutex_);
        hide_line();
      },
      [this] {
        const std::lock_guard<std::mutex> lock(mutex_);
        draw_line();
      });
}

Progress::~Progress() {
  finish();
}

bool Progress::due_locked(int64_t step) const {
  if (finished_) return false;
  if (step == options_.total) return true;
  if (!live_) return step % options_.log_every == 0 || step == options_.first + 1;
  return options_.clock->seconds() - last_draw_ >= options_.redraw_seconds;
}

bool Progress::due(int64_t step) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return due_locked(step);
}

void Progress::update(int64_t step, const ProgressFields& fields) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) return;
  const bool shown = due_locked(step);
  if (step > history_.back().second) history_.emplace_back(options_.clock->seconds(), step);
  if (history_.size() > kHistory) history_.pop_front();
  step_ = step;
  fields_ = fields;
  has_state_ = true;
  if (!shown) return;
  last_draw_ = options_.clock->seconds();
  if (live_) {
    draw_line();
  } else {
    put(compose(step, fields, 0) + "\n");
  }
}

void Progress::note(std::string_view text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string lines(text);
  if (lines.empty() || lines.back() != '\n') lines += '\n';
  hide_line();
  put(lines);
  draw_line();
}

void Progress::finish() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    if (live_ && has_state_) {
      draw_line();
      put("\n");
    }
    finished_ = true;
  }
  if (live_) set_log_line_owner({}, {});  // takes the log's lock, so not under ours
}

std::optional<double> Progress::eta_seconds() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return eta_locked();
}

std::optional<double> Progress::eta_locked() const {
  // The first step warms caches and allocators up; it counts only while there is no other.
  const auto& oldest =
      history_.size() > 2 && history_.front().second == options_.first ? history_[1] : history_.front();
  const auto& newest = history_.back();
  const int64_t steps = newest.second - oldest.second;
  if (options_.total <= 0 || steps <= 0) return std::nullopt;
  const double pace = (newest.first - oldest.first) / static_cast<double>(steps);
  if (pace <= 0) return std::nullopt;
  return pace * static_cast<double>(std::max<int64_t>(options_.total - newest.second, 0));
}

// `width` 0: no limit.
std::string Progress::compose(int64_t step, const ProgressFields& fields, size_t width) const {
  std::string line = concat(options_.unit, " ", step);
  if (options_.total > 0) line += concat("/", options_.total);
  std::string eta;
  if (const auto seconds = eta_locked(); seconds && step < options_.total)
    eta = "   eta " + format_duration(*seconds);
  // Room is given by importance: the first fields, the ETA (shown last), the other fields.
  constexpr size_t kBeforeEta = 2;
  size_t used = columns(line);
  const auto take = [&](const std::string& part) {
    if (width > 0 && used + columns(part) > width) return false;
    used += columns(part);
    return true;
  };
  bool fits = true, shows_eta = false;
  for (size_t i = 0; i <= fields.size() && fits; ++i) {
    if (i == std::min(kBeforeEta, fields.size())) fits = shows_eta = take(eta);
    if (i == fields.size() || !fits) break;
    const auto& [name, value] = fields[i];
    const std::string field = printable(concat("   ", name, name.empty() ? "" : " ", value));
    fits = take(field);
    if (fits) line += field;
  }
  if (shows_eta) line += eta;
  return width == 0 ? line : cut(line, width);
}

void Progress::put(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t count = ::write(options_.fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // nobody is looking any more
    text.remove_prefix(static_cast<size_t>(count));
  }
}

void Progress::hide_line() const {
  if (live_ && has_state_ && !finished_) put(kEraseLine);
}

void Progress::draw_line() const {
  if (!live_ || !has_state_ || finished_) return;
  // The last column stays free: writing there would wrap on some terminals.
  put(kEraseLine + compose(step_, fields_, std::max<size_t>(terminal_width(options_.fd), 2) - 1));
}

}  // namespace moebius::telemetry
