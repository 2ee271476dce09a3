// Log lines on stderr: "warning: …", "error: …", "debug: …"; info lines carry no prefix. Coloured only on a
// terminal (and not when NO_COLOR is set). Thread-safe; a line is written whole. Metrics and progress do not
// go through here.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/concat.h"

namespace moebius {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };

void set_log_level(LogLevel level);
LogLevel log_level();

// "debug", "info", "warn", "error" or "off"; anything else is a UserError that lists them.
LogLevel parse_log_level(std::string_view name);

// Writes one line (a trailing newline is added) when `level` is on.
void log_line(LogLevel level, std::string_view message);

// Somebody who owns the terminal's last line (the live progress line) has it taken away before a log line is
// written and put back after; both run under the log's lock and must not log. Empty functions remove the
// owner.
void set_log_line_owner(std::function<void()> hide, std::function<void()> show);

template <class... Parts>
void log_debug(const Parts&... parts) {
  if (log_level() <= LogLevel::kDebug) log_line(LogLevel::kDebug, concat(parts...));
}
template <class... Parts>
void log_info(const Parts&... parts) {
  if (log_level() <= LogLevel::kInfo) log_line(LogLevel::kInfo, concat(parts...));
}
template <class... Parts>
void log_warn(const Parts&... parts) {
  if (log_level() <= LogLevel::kWarn) log_line(LogLevel::kWarn, concat(parts...));
}
template <class... Parts>
void log_error(const Parts&... parts) {
  if (log_level() <= LogLevel::kError) log_line(LogLevel::kError, concat(parts...));
}

}  // namespace moebius
