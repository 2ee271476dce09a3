// The pieces that a planner may choose from: the next ones of a stream, up to a fixed number.
#pragma once

#include <cstdint>
#include <vector>

#include "data/planner/document_stream.h"
#include "data/planner/plan.h"

namespace moebius::data {

// A piece that waits.
struct Pending {
  Piece piece;
  int64_t arrival = 0;  // its number in the stream
  int64_t entered = 0;  // step in which it came into the window
  bool operator==(const Pending&) const = default;
};

// A set of lengths in [1, max] as a tree of 64-bit words: the nearest member at or below a length in a few
// instructions whatever the size.
class LengthSet {
 public:
  explicit LengthSet(int64_t max);
  void insert(int64_t length);
  void erase(int64_t length);
  // The largest member <= length, or 0.
  int64_t largest_at_most(int64_t length) const;
  // The smallest member >= length, or 0.
  int64_t smallest_at_least(int64_t length) const;

 private:
  int64_t max_;
  std::vector<std::vector<uint64_t>> levels_;  // bit i of a level: word i of the level below is not zero
};

// Taking a piece lets the next one of the stream in, so that the window is always full until the stream ends.
// Pieces can be found by age and by length; those of equal length come oldest first.
class Window {
 public:
  static constexpr int32_t kNone = -1;

  Window(DocumentStream& stream, int64_t capacity, int64_t max_length);

  // Lets pieces in until the window is full; `step` is written to those that enter from now on.
  void fill(int64_t step);
  bool empty() const { return size_ == 0; }
  int64_t size() const { return size_; }
  int64_t num_arrived() const { return num_arrived_; }
  // Sums over all pieces that ever entered, halved together before they overflow.
  int64_t sum_lengths() const { return sum_lengths_; }
  int64_t sum_squares() const { return sum_squares_; }
  const Pending& at(int32_t slot) const { return slots_[slot].pending; }

  // By age; kNone at the end.
  int32_t oldest() const { return oldest_; }
  int32_t after(int32_t slot) const { return slots_[slot].newer; }

  // By length.
  int64_t largest_at_most(int64_t length) const { return lengths_.largest_at_most(length); }
  int64_t smallest_at_least(int64_t length) const { return lengths_.smallest_at_least(length); }
  int32_t oldest_of(int64_t length) const { return first_[length]; }
  int32_t after_of_length(int32_t slot) const { return slots_[slot].following; }
  bool has_two_of(int64_t length) const { return first_[length] != last_[length]; }

  // Removes a piece and adds it to a micro-batch (cost apart); the next one of the stream enters.
  Pending take(int32_t slot, MicroBatchPlan& micro_batch);

  // All that waits, oldest first, and the sums: what a saved planner needs beside the stream's position.
  std::vector<Pending> pending() const;
  void restore(const std::vector<Pending>& pending, int64_t num_arrived, int64_t sum_lengths,
               int64_t sum_squares);

 private:
  struct Slot {
    Pending pending;
    int32_t older = kNone, newer = kNone;         // by age
    int32_t previous = kNone, following = kNone;  // among those of the same length
  };
  bool enter_next();
  void enter(const Pending& pending);

  DocumentStream& stream_;
  int64_t capacity_;
  bool stream_ended_ = false;
  int64_t step_ = 0, size_ = 0, num_arrived_ = 0;
  int64_t sum_lengths_ = 0, sum_squares_ = 0;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;
  int32_t oldest_ = kNone, newest_ = kNone;
  std::vector<int32_t> first_, last_;  // slots by length
  LengthSet lengths_;
};

}  // namespace moebius::data
