#include "data/planner/window.h"

#include <bit>

#include "base/check.h"

namespace moebius::data {

LengthSet::LengthSet(int64_t max) : max_(max) {
  MOEBIUS_CHECK_GE(max, 1);
  for (int64_t words = max / 64 + 1;; words = (words + 63) / 64) {
    levels_.emplace_back(words, 0);
    if (words == 1) break;
  }
}

void LengthSet::insert(int64_t length) {
  for (auto& level : levels_) {
    level[length / 64] |= uint64_t{1} << (length % 64);
    length /= 64;
  }
}

void LengthSet::erase(int64_t length) {
  for (auto& level : levels_) {
    level[length / 64] &= ~(uint64_t{1} << (length % 64));
    if (level[length / 64] != 0) break;
    length /= 64;
  }
}

int64_t LengthSet::largest_at_most(int64_t length) const {
  if (length < 1) return 0;
  if (length > max_) length = max_;
  int64_t at = length;  // bit asked for, inclusive
  for (size_t level = 0; level < levels_.size(); ++level) {
    const uint64_t word = levels_[level][at / 64] & (~uint64_t{0} >> (63 - at % 64));
    if (word != 0) {
      int64_t found = at / 64 * 64 + 63 - std::countl_zero(word);
      for (size_t below = level; below-- > 0;)
        found = found * 64 + 63 - std::countl_zero(levels_[below][found]);
      return found;
    }
    at = at / 64 - 1;
    if (at < 0) return 0;
  }
  return 0;
}

int64_t LengthSet::smallest_at_least(int64_t length) const {
  if (length > max_) return 0;
  int64_t at = length;
  for (size_t level = 0; level < levels_.size(); ++level) {
    if (at / 64 >= static_cast<int64_t>(levels_[level].size())) return 0;
    const uint64_t word = levels_[level][at / 64] & (~uint64_t{0} << (at % 64));
    if (word != 0) {
      int64_t found = at / 64 * 64 + std::countr_zero(word);
      for (size_t below = level; below-- > 0;) found = found * 64 + std::countr_zero(levels_[below][found]);
      return found;
    }
    at = at / 64 + 1;
  }
  return 0;
}

Window::Window(DocumentStream& stream, int64_t capacity, int64_t max_length)
    : stream_(stream),
      capacity_(capacity),
      first_(max_length + 1, kNone),
      last_(max_length + 1, kNone),
      lengths_(max_length) {
  MOEBIUS_CHECK_GE(capacity, 1);
}

void Window::fill(int64_t step) {
  step_ = step;
  while (size_ < capacity_ && enter_next()) {
  }
}

bool Window::enter_next() {
  if (stream_ended_) return false;
  const std::optional<Piece> piece = stream_.next();
  if (!piece) {
    stream_ended_ = true;
    return false;
  }
  constexpr int64_t kLimit = int64_t{1} << 61;
  if (sum_squares_ > kLimit) {
    sum_squares_ /= 2;
    sum_lengths_ /= 2;
  }
  sum_lengths_ += piece->length;
  sum_squares_ += piece->length * piece->length;
  enter({*piece, num_arrived_++, step_});
  return true;
}

void Window::enter(const Pending& pending) {
  int32_t slot = static_cast<int32_t>(slots_.size());
  if (free_.empty()) {
    slots_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  const int64_t length = pending.piece.length;
  slots_[slot] = {pending, newest_, kNone, last_[length], kNone};
  if (newest_ == kNone)
    oldest_ = slot;
  else
    slots_[newest_].newer = slot;
  newest_ = slot;
  if (last_[length] == kNone) {
    first_[length] = slot;
    lengths_.insert(length);
  } else {
    slots_[last_[length]].following = slot;
  }
  last_[length] = slot;
  ++size_;
}

Pending Window::take(int32_t slot, MicroBatchPlan& micro_batch) {
  const Slot taken = slots_[slot];
  const int64_t length = taken.pending.piece.length;
  (taken.older == kNone ? oldest_ : slots_[taken.older].newer) = taken.newer;
  (taken.newer == kNone ? newest_ : slots_[taken.newer].older) = taken.older;
  (taken.previous == kNone ? first_[length] : slots_[taken.previous].following) = taken.following;
  (taken.following == kNone ? last_[length] : slots_[taken.following].previous) = taken.previous;
  if (first_[length] == kNone) lengths_.erase(length);
  free_.push_back(slot);
  --size_;
  micro_batch.pieces.push_back(taken.pending.piece);
  micro_batch.arrivals.push_back(taken.pending.arrival);
  micro_batch.tokens += length;
  enter_next();
  return taken.pending;
}

std::vector<Pending> Window::pending() const {
  std::vector<Pending> all;
  all.reserve(size_);
  for (int32_t slot = oldest_; slot != kNone; slot = after(slot)) all.push_back(at(slot));
  return all;
}

void Window::restore(const std::vector<Pending>& pending, int64_t num_arrived, int64_t sum_lengths,
                     int64_t sum_squares) {
  MOEBIUS_CHECK(empty(), "a window is restored once, before its first use");
  for (const Pending& each : pending) enter(each);
  num_arrived_ = num_arrived;
  sum_lengths_ = sum_lengths;
  sum_squares_ = sum_squares;
}

}  // namespace moebius::data
