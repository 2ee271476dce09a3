#include "telemetry/trace.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/file.h"

namespace moebius::telemetry {
namespace trace_detail {

std::atomic<uint64_t> session{0};

}  // namespace trace_detail

namespace {

constexpr int64_t kExchange = -2;

struct Event {
  const char* name;
  const char* category;  // null: a counter
  int64_t index;         // kExchange: `category` is a track of its own
  double begin;          // seconds
  double duration;       // seconds; a counter's value
};

// Events of one thread. The lock is contended only while a trace starts, stops or is written.
struct Track {
  std::mutex mutex;
  std::vector<Event> events;
  std::string thread_name;
  pid_t thread_id = ::gettid();
};

struct State {
  std::mutex mutex;
  std::vector<std::shared_ptr<Track>> tracks;  // those of finished threads stay until the next start
  uint64_t last_session = 0;
  std::atomic<const Clock*> clock{&system_clock()};
  std::atomic<size_t> max_events{0};
  std::atomic<size_t> num_events{0};
  double begin = 0;
};

// Never destroyed: threads may end after main.
State& state() {
  static State* instance = new State();
  return *instance;
}

Track& this_track() {
  thread_local const std::shared_ptr<Track> track = [] {
    auto made = std::make_shared<Track>();
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().tracks.push_back(made);
    return made;
  }();
  return *track;
}

void add(const Event& event, uint64_t session) {
  Track& track = this_track();
  const std::lock_guard<std::mutex> lock(track.mutex);
  // Under the lock: start_trace empties the tracks under it, so no event of a former trace can slip in after.
  if (trace_detail::session.load() != session) return;
  if (state().num_events.fetch_add(1) >= state().max_events.load()) return;
  track.events.push_back(event);
}

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string micros(double seconds) {
  char text[40];
  std::snprintf(text, sizeof text, "%.3f", seconds * 1e6);
  return text;
}

// Begin and end of what may overlap others; the number makes them a pair.
std::string exchange_json(const Event& event, double origin, int process, int64_t number) {
  const auto half = [&](char phase, double seconds) {
    return "{\"name\":" + quoted(event.name) + ",\"cat\":" + quoted(event.category) + ",\"ph\":\"" + phase +
           "\",\"id2\":{\"local\":\"" + std::to_string(number) + "\"},\"pid\":" + std::to_string(process) +
           ",\"tid\":0,\"ts\":" + micros(seconds) + "}";
  };
  return half('b', event.begin - origin) + ",\n" + half('e', event.begin - origin + event.duration);
}

std::string event_json(const Event& event, double origin, int process, pid_t thread) {
  std::string json = "{\"name\":" + quoted(event.name) + ",\"pid\":" + std::to_string(process) +
                     ",\"tid\":" + std::to_string(thread) + ",\"ts\":" + micros(event.begin - origin);
  if (event.category == nullptr) {
    const nlohmann::json value = std::isfinite(event.duration) ? event.duration : 0.0;
    return json + ",\"ph\":\"C\",\"args\":{\"value\":" + value.dump() + "}}";
  }
  json += ",\"ph\":\"X\",\"cat\":" + quoted(event.category) + ",\"dur\":" + micros(event.duration);
  if (event.index >= 0) json += ",\"args\":{\"index\":" + std::to_string(event.index) + "}";
  return json + "}";
}

}  // namespace

namespace trace_detail {

double now() {
  return state().clock.load(std::memory_order_relaxed)->seconds();
}

void add_span(uint64_t span_session, const char* name, const char* category, int64_t index, double begin) {
  if (session.load(std::memory_order_relaxed) != span_session) return;  // stopped meanwhile
  add({name, category, index, begin, now() - begin}, span_session);
}

void add_exchange(uint64_t begun_session, const char* name, const char* track, double begin) {
  if (session.load(std::memory_order_relaxed) != begun_session) return;  // stopped meanwhile
  add({name, track, kExchange, begin, now() - begin}, begun_session);
}

void add_counter(const char* name, double value) {
  const uint64_t current = session.load(std::memory_order_relaxed);
  if (current != 0) add({name, nullptr, -1, now(), value}, current);
}

}  // namespace trace_detail

void start_trace(size_t max_events, const Clock& clock) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  trace_detail::session.store(0);
  std::erase_if(s.tracks, [](const auto& track) { return track.use_count() == 1; });  // its thread ended
  for (const auto& track : s.tracks) {
    const std::lock_guard<std::mutex> track_lock(track->mutex);
    track->events.clear();
    track->events.shrink_to_fit();
  }
  s.clock.store(&clock);
  s.max_events.store(max_events);
  s.num_events.store(0);
  s.begin = clock.seconds();
  trace_detail::session.store(++s.last_session);
}

void stop_trace() {
  trace_detail::session.store(0);
  state().clock.store(&system_clock());
}

int64_t num_dropped_trace_events() {
  const size_t seen = state().num_events.load(), kept = state().max_events.load();
  return seen > kept ? static_cast<int64_t>(seen - kept) : 0;
}

std::string trace_text(int process, const std::string& process_name) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const std::string pid = std::to_string(process);
  std::string text = "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" + pid +
                     ",\"tid\":0,\"args\":{\"name\":" + quoted(process_name) + "}}";
  int64_t number = 0;
  for (const auto& track : s.tracks) {
    const std::lock_guard<std::mutex> track_lock(track->mutex);
    if (track->events.empty()) continue;
    const std::string name = !track->thread_name.empty()      ? track->thread_name
                             : track->thread_id == ::getpid() ? "main"
                                                              : "thread " + std::to_string(track->thread_id);
    text += ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" + pid +
            ",\"tid\":" + std::to_string(track->thread_id) + ",\"args\":{\"name\":" + quoted(name) + "}}";
    for (const Event& event : track->events)
      text += ",\n" + (event.index == kExchange ? exchange_json(event, s.begin, process, number++)
                                                : event_json(event, s.begin, process, track->thread_id));
  }
  return text;
}

void write_trace(const std::filesystem::path& path, const std::vector<std::string>& texts) {
  AtomicFile file(path);
  file.write("{\"displayTimeUnit\":\"ms\",\"otherData\":{\"dropped_events\":" +
             std::to_string(num_dropped_trace_events()) + "},\"traceEvents\":[\n");
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) file.write(",\n");
    file.write(texts[i]);
  }
  file.write("\n]}\n");
  file.commit();
}

void write_trace(const std::filesystem::path& path) {
  write_trace(path, {trace_text(::getpid(), "moebius")});
}

void name_this_thread(const std::string& name) {
  Track& track = this_track();
  const std::lock_guard<std::mutex> lock(track.mutex);
  track.thread_name = name;
}

}  // namespace moebius::telemetry
