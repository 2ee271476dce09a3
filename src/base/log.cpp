#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "base/error.h"

namespace moebius {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

// Writes each line with one write(2) per attempt, so that lines of several processes do not interleave.
class StderrSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void set_owner(std::function<void()> hide, std::function<void()> show) {
    std::lock_guard<std::mutex> lock(mutex_);
    hide_ = std::move(hide);
    show_ = std::move(show);
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::string line;
    const bool colour = isatty(STDERR_FILENO) && std::getenv("NO_COLOR") == nullptr;
    const auto prefix = [&](const char* text, const char* code) {
      line += colour ? std::string(code) + text + "\033[0m" : std::string(text);
    };
    if (message.level == spdlog::level::debug) prefix("debug: ", "\033[2m");
    if (message.level == spdlog::level::warn) prefix("warning: ", "\033[33m");
    if (message.level == spdlog::level::err) prefix("error: ", "\033[31m");
    line.append(message.payload.data(), message.payload.size());
    line += '\n';
    if (hide_) hide_();
    size_t done = 0;
    while (done < line.size()) {
      const ssize_t count = ::write(STDERR_FILENO, line.data() + done, line.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;  // nowhere left to report to
      done += static_cast<size_t>(count);
    }
    if (show_) show_();
  }
  void flush_() override {}

 private:
  std::function<void()> hide_, show_;
};

struct Log {
  std::shared_ptr<StderrSink> sink = std::make_shared<StderrSink>();
  spdlog::logger logger{"moebius", sink};
  Log() { logger.set_level(spdlog::level::debug); }
};

// Never destroyed: destructors of other statics may still log.
Log& log() {
  static Log* instance = new Log();
  return *instance;
}

}  // namespace

void set_log_level(LogLevel level) {
  g_level.store(level, std::memory_order_relaxed);
}

LogLevel log_level() {
  return g_level.load(std::memory_order_relaxed);
}

LogLevel parse_log_level(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  throw_user_error("log level '", name, "' is unknown; use debug, info, warn, error or off");
}

void log_line(LogLevel level, std::string_view message) {
  if (level < log_level() || level == LogLevel::kOff) return;
  log().logger.log(to_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
}

void set_log_line_owner(std::function<void()> hide, std::function<void()> show) {
  log().sink->set_owner(std::move(hide), std::move(show));
}

}  // namespace moebius
