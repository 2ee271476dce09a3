#include "data/build_progress.h"

#include <unistd.h>

#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"

namespace moebius::data {
namespace {

class Display {
 public:
  Display() : terminal_(::isatty(STDERR_FILENO) != 0) {}

  void update(const std::string& file, int64_t done, int64_t total) {
    const double now = steady_seconds();
    if (file != file_ || done < done_) {
      file_ = file;
      start_ = now;
      shown_ = now;
      first_ = done;
    }
    done_ = done;
    const double seconds = now - start_;
    if (done >= total) {
      erase();
      if (seconds > 1) {
        log_info("tokenized ", file, ": ", format_bytes(total), " in ", format_duration(seconds), ", ",
                 format_bytes(static_cast<int64_t>(rate(now))), "/s");
      }
      file_.clear();
    } else if (now - shown_ >= (terminal_ ? 0.1 : 10)) {
      shown_ = now;
      const double left = static_cast<double>(total - done);
      std::string text = concat("tokenizing ", file, ": ", 100 * done / total, " % of ", format_bytes(total));
      if (rate(now) > 0) {
        text += concat(", ", format_bytes(static_cast<int64_t>(rate(now))), "/s, ",
                       format_duration(left / rate(now)), " left");
      }
      if (terminal_) {
        std::fprintf(stderr, "\r\033[K%s", text.c_str());
        std::fflush(stderr);
        drawn_ = true;
      } else {
        log_info(text);
      }
    }
  }

 private:
  // Bytes per second of this process.
  double rate(double now) const {
    return now > start_ ? static_cast<double>(done_ - first_) / (now - start_) : 0;
  }

  void erase() {
    if (drawn_) std::fputs("\r\033[K", stderr);
    drawn_ = false;
  }

  const bool terminal_;
  bool drawn_ = false;
  std::string file_;
  int64_t done_ = 0, first_ = 0;  // first_: an earlier, interrupted build had done that
  double start_ = 0, shown_ = 0;
};

}  // namespace

BuildProgress show_build_progress() {
  return [display = std::make_shared<Display>()](const std::string& file, int64_t done, int64_t total) {
    display->update(file, done, total);
  };
}

}  // namespace moebius::data
