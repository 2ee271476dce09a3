#include "data/loader.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace moebius::data {

struct Loader::State {
  std::unique_ptr<BatchSource> source;
  LoaderOptions options;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::unique_ptr<Batch>> ready;  // in order
  std::vector<std::unique_ptr<Batch>> unused;
  std::exception_ptr error;
  bool stop = false;

  std::unique_ptr<Batch> current;  // the consumer's
  double wait_seconds = 0;
  std::thread thread;

  void run() {
    try {
      for (int64_t step = options.first_step;; ++step) {
        for (int64_t micro = 0; micro < options.micro_batches; ++micro) {
          std::unique_ptr<Batch> batch;
          {
            std::unique_lock lock(mutex);
            changed.wait(lock, [&] { return stop || !unused.empty(); });
            if (stop) return;
            batch = std::move(unused.back());
            unused.pop_back();
          }
          batch->clear();
          batch->step = step;
          batch->micro = micro;
          source->fill(step, micro, *batch);
          {
            std::lock_guard lock(mutex);
            ready.push_back(std::move(batch));
          }
          changed.notify_all();
        }
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      error = std::current_exception();
    }
    changed.notify_all();
  }
};

Loader::Loader(std::unique_ptr<BatchSource> source, const LoaderOptions& options)
    : state_(std::make_unique<State>()) {
  MOEBIUS_CHECK_GE(options.micro_batches, 1);
  MOEBIUS_CHECK_GE(options.depth, 1);
  state_->source = std::move(source);
  state_->options = options;
  for (int64_t i = 0; i < options.depth; ++i) state_->unused.push_back(std::make_unique<Batch>());
  state_->current = std::make_unique<Batch>();
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Loader::~Loader() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

Batch& Loader::next() {
  const auto start = std::chrono::steady_clock::now();
  {
    std::unique_lock lock(state_->mutex);
    if (state_->current) state_->unused.push_back(std::move(state_->current));
    state_->changed.notify_all();
    state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->error; });
    if (state_->ready.empty()) {
      state_->current = std::make_unique<Batch>();
      std::rethrow_exception(state_->error);
    }
    state_->current = std::move(state_->ready.front());
    state_->ready.pop_front();
  }
  state_->wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return *state_->current;
}

double Loader::wait_seconds() const {
  return state_->wait_seconds;
}

}  // namespace moebius::data
