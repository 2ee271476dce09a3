// Spans and counters of a stretch of time, written as a Chrome trace (open in ui.perfetto.dev or
// chrome://tracing). Format: "Trace Event Format", complete ("X"), counter ("C"), nestable async ("b", "e")
// and metadata ("M") events.
//
//   telemetry::Span span("forward", "train");        // until the end of the scope; nests
//
// While no trace is being taken a Span costs one relaxed load. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/clock.h"

namespace moebius::telemetry {

// Starts a new trace, forgetting the former one. At most `max_events` are kept (56 bytes each); later ones
// are counted and dropped. The clock must stay until stop_trace().
void start_trace(size_t max_events = size_t{1} << 18, const Clock& clock = system_clock());
// Ends recording; spans still open are lost.
void stop_trace();
// Writes what was recorded. Call after stop_trace(). UserError when the file cannot be written.
void write_trace(const std::filesystem::path& path);
// The same of several processes, each of which has made its text; `process` tells them apart. Times count
// from the start_trace() of each.
std::string trace_text(int process, const std::string& process_name);
void write_trace(const std::filesystem::path& path, const std::vector<std::string>& texts);
// Events that found no room.
int64_t num_dropped_trace_events();

namespace trace_detail {
extern std::atomic<uint64_t> session;  // 0: not recording
double now();
void add_exchange(uint64_t session, const char* name, const char* track, double begin);
void add_span(uint64_t session, const char* name, const char* category, int64_t index, double begin);
void add_counter(const char* name, double value);
}  // namespace trace_detail

inline bool tracing() {
  return trace_detail::session.load(std::memory_order_relaxed) != 0;
}

// `name` and `category` must be literals (the pointers are kept). `index`, when not negative, tells spans of
// one name apart (layer, micro-batch) and is shown as the argument "index".
class Span {
 public:
  explicit Span(const char* name, const char* category = "moebius", int64_t index = -1)
      : session_(trace_detail::session.load(std::memory_order_relaxed)) {
    if (session_ == 0) [[likely]]
      return;
    name_ = name;
    category_ = category;
    index_ = index;
    begin_ = trace_detail::now();
  }
  ~Span() {
    if (session_ != 0) [[unlikely]]
      trace_detail::add_span(session_, name_, category_, index_, begin_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  uint64_t session_;
  const char* name_;
  const char* category_;
  int64_t index_;
  double begin_;
};

// Something that runs beside the threads, from its making to end(): overlaps others of its track. `name` is a
// literal; `track` stays until the trace is written.
class Exchange {
 public:
  Exchange(const char* name, const char* track)
      : session_(trace_detail::session.load(std::memory_order_relaxed)), name_(name), track_(track) {
    if (session_ != 0) [[unlikely]]
      begin_ = trace_detail::now();
  }
  // The first call counts.
  void end() {
    if (session_ == 0) [[likely]]
      return;
    trace_detail::add_exchange(session_, name_, track_, begin_);
    session_ = 0;
  }

 private:
  uint64_t session_;
  const char* name_;
  const char* track_;
  double begin_ = 0;
};

// A value over time, as its own track. `name` must be a literal.
inline void trace_counter(const char* name, double value) {
  if (tracing()) [[unlikely]]
    trace_detail::add_counter(name, value);
}

// The name under which this thread appears in traces.
void name_this_thread(const std::string& name);

}  // namespace moebius::telemetry
