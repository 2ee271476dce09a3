#include "cli/queue_folder.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "base/error.h"

namespace moebius::cli {

void add_queue_option(CLI::App& command, std::string& folder) {
  command.add_option("--queue", folder,
                     "Folder of the queue (default: $MOEBIUS_QUEUE, else ~/.local/share/moebius/queue)");
}

std::filesystem::path queue_folder(const std::string& option) {
  if (!option.empty()) return option;
  if (const char* folder = std::getenv("MOEBIUS_QUEUE"); folder != nullptr && *folder != 0) return folder;
  if (const char* data = std::getenv("XDG_DATA_HOME"); data != nullptr && *data == '/')
    return std::filesystem::path(data) / "moebius/queue";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return std::filesystem::path(home) / ".local/share/moebius/queue";
  throw_user_error("there is no HOME to keep a queue in; name a folder with --queue");
}

double parse_duration(const std::string& text, const char* what) {
  double seconds = 0;
  const char *at = text.data(), *const end = at + text.size();
  bool good = at != end;
  while (good && at != end) {
    double number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    good = error == std::errc() && number >= 0;
    if (!good) break;
    const char unit = next == end ? 's' : *next;
    const double factor = unit == 's' ? 1 : unit == 'm' ? 60 : unit == 'h' ? 3600 : unit == 'd' ? 86400 : 0;
    good = factor > 0;
    seconds += number * factor;
    at = next == end ? end : next + 1;
  }
  if (!good || seconds > 3.2e9)
    throw_user_error(what, " is '", text, "'; use a time such as 90s, 45m, 4h, 1h30m or 2d");
  return seconds;
}

double parse_time(const std::string& text, const char* what) {
  std::tm parts{};
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0, used = 0;
  bool good = std::sscanf(text.c_str(), "%4d-%2d-%2d%n", &year, &month, &day, &used) == 3;
  if (good && text[static_cast<size_t>(used)] == 'T') {
    int more = 0;
    good = std::sscanf(text.c_str() + used, "T%2d:%2d%n", &hour, &minute, &more) == 2;
    used += more;
    if (good && std::sscanf(text.c_str() + used, ":%2d%n", &second, &more) == 1) used += more;
    if (good && text[static_cast<size_t>(used)] == 'Z') ++used;
  }
  parts.tm_year = year - 1900;
  parts.tm_mon = month - 1;
  parts.tm_mday = day;
  parts.tm_hour = hour;
  parts.tm_min = minute;
  parts.tm_sec = second;
  const std::tm asked = parts;
  const std::time_t time = good ? timegm(&parts) : 0;
  if (!good || static_cast<size_t>(used) != text.size() || parts.tm_mday != asked.tm_mday ||
      parts.tm_mon != asked.tm_mon || parts.tm_hour != asked.tm_hour || parts.tm_min != asked.tm_min)
    throw_user_error(what, " is '", text, "'; use a time in UTC such as 2031-05-17T09:00Z");
  return static_cast<double>(time);
}

}  // namespace moebius::cli
