// What the stages of a corpus build hand work over with. Amounts in flight are bounded where work enters
// (Credits), so that pushing never blocks and no order of stages can lock up; results leave in the order of
// their numbers whatever thread finished them (OrderedQueue). After stop() every waiting call returns.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace moebius::data {

// A bounded amount: acquire() waits while it would be exceeded. A single piece larger than the bound passes
// when it is alone.
class Credits {
 public:
  explicit Credits(int64_t limit) : limit_(limit) {}

  // False after stop().
  bool acquire(int64_t amount) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || used_ == 0 || used_ + amount <= limit_; });
    if (stopped_) return false;
    used_ += amount;
    return true;
  }
  void release(int64_t amount) {
    {
      const std::lock_guard lock(mutex_);
      used_ -= amount;
    }
    changed_.notify_all();
  }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
  }

 private:
  const int64_t limit_;
  int64_t used_ = 0;
  bool stopped_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
};

// Items come with numbers 0, 1, 2, ... in any order and leave in that order.
template <class T>
class OrderedQueue {
 public:
  void push(int64_t number, T item) {
    {
      const std::lock_guard lock(mutex_);
      items_.emplace(number, std::move(item));
    }
    changed_.notify_all();
  }
  // No item has a number of `count` or more.
  void end(int64_t count) {
    {
      const std::lock_guard lock(mutex_);
      count_ = count;
    }
    changed_.notify_all();
  }
  // The next item; none at the end and after stop().
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || next_ == count_ || items_.contains(next_); });
    if (stopped_ || next_ == count_) return std::nullopt;
    auto node = items_.extract(next_++);
    return std::move(node.mapped());
  }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
  }

 private:
  std::map<int64_t, T> items_;
  int64_t next_ = 0, count_ = -1;
  bool stopped_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
};

// Two kinds of work for any number of threads; the second kind, which is nearer to the end, goes first.
template <class First, class Second>
class WorkQueue {
 public:
  void push_first(First item) { push(first_, std::move(item)); }
  void push_second(Second item) { push(second_, std::move(item)); }

  // Fills one of the two; neither after stop().
  std::pair<std::optional<First>, std::optional<Second>> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || !first_.empty() || !second_.empty(); });
    std::pair<std::optional<First>, std::optional<Second>> item;
    if (stopped_) return item;
    if (!second_.empty()) {
      item.second = std::move(second_.front());
      second_.pop_front();
    } else {
      item.first = std::move(first_.front());
      first_.pop_front();
    }
    return item;
  }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
  }

 private:
  template <class T>
  void push(std::deque<T>& queue, T item) {
    {
      const std::lock_guard lock(mutex_);
      queue.push_back(std::move(item));
    }
    changed_.notify_one();
  }

  std::deque<First> first_;
  std::deque<Second> second_;
  bool stopped_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace moebius::data
