#include "parallel/collective_watch.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/concat.h"

namespace moebius::parallel {

struct CollectiveWatch::State {
  struct Entry {
    Place place;
    c10::intrusive_ptr<c10d::Work> work;
    double since;
  };

  // What is wrong with the first that has not ended; nothing when it may go on.
  static std::optional<std::string> trouble(const Entry& entry) {
    try {
      if (!entry.work->isCompleted()) {
        if (steady_seconds() - entry.since < entry.place.timeout_s) return std::nullopt;
        return late_text(entry.place, "a rank hangs, or is at another collective");
      }
      if (entry.work->exception() != nullptr) std::rethrow_exception(entry.work->exception());
    } catch (const std::exception& error) {
      const std::string text = error.what();
      return concat(describe(entry.place), ": a rank is gone, or the network (",
                    text.substr(0, text.find('\n')), ")");
    }
    return "";
  }

  std::optional<std::string> look() {
    std::unique_lock lock(mutex);
    for (auto& [axis, queue] : queues) {
      while (!queue.empty()) {
        const Entry first = queue.front();  // nobody else takes entries away
        lock.unlock();
        const std::optional<std::string> text = trouble(first);
        lock.lock();
        if (!text) break;
        if (!text->empty()) return text;
        queue.pop_front();
        if (!queue.empty()) queue.front().since = std::max(queue.front().since, steady_seconds());
      }
    }
    return std::nullopt;
  }

  void run(double seconds) {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return ends; })) {
      lock.unlock();
      if (const std::optional<std::string> text = look()) {
        on_failure(*text);
        return;
      }
      lock.lock();
    }
  }

  std::function<void(const std::string&)> on_failure;
  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false;
  std::map<std::string, std::deque<Entry>> queues;
  std::thread watcher;
};

CollectiveWatch::CollectiveWatch(std::function<void(const std::string& text)> on_failure, double seconds)
    : state_(std::make_unique<State>()) {
  state_->on_failure = std::move(on_failure);
  state_->watcher = std::thread([state = state_.get(), seconds] { state->run(seconds); });
}

CollectiveWatch::~CollectiveWatch() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ends = true;
  }
  state_->changed.notify_all();
  state_->watcher.join();
}

void CollectiveWatch::add(const Place& place, c10::intrusive_ptr<c10d::Work> work) {
  const std::lock_guard lock(state_->mutex);
  state_->queues[place.axis].push_back({place, std::move(work), steady_seconds()});
}

}  // namespace moebius::parallel
