// Keeping account of memory that is not there: sizes are held and released in the order in which a program
// would allocate and free tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "train/memory_plan.h"

namespace moebius::train {

// Counts what is held, by class and moment.
class Tape {
 public:
  using Class = int64_t MemoryByClass::*;

  // Sizes are rounded up to multiples of `granularity` bytes.
  explicit Tape(int64_t granularity) : granularity_(granularity) {}

  // Names what follows.
  void begin(std::string moment) { moment_ = std::move(moment); }

  void hold(Class klass, int64_t bytes) {
    held_.*klass += bytes;
    plan_.largest.*klass = std::max(plan_.largest.*klass, held_.*klass);
    if (held_.total() <= plan_.at_peak.total()) return;
    plan_.at_peak = held_;
    plan_.peak_moment = moment_;
  }
  void release(Class klass, int64_t bytes) { held_.*klass -= bytes; }

  int64_t rounded(int64_t bytes) const { return (bytes + granularity_ - 1) / granularity_ * granularity_; }
  const MemoryPlan& plan() const { return plan_; }

 private:
  int64_t granularity_;
  std::string moment_;
  MemoryByClass held_;
  MemoryPlan plan_;
};

// The memory of one tensor, held while the object lives.
class Block {
 public:
  Block(Tape& tape, Tape::Class klass, int64_t bytes)
      : tape_(tape), klass_(klass), bytes_(tape.rounded(bytes)), held_(bytes_) {
    tape_.hold(klass_, held_);
  }
  ~Block() { tape_.release(klass_, held_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Whoever holds the tensor goes on to hold it without memory (nn::Discards).
  void discard() { tape_.release(klass_, std::exchange(held_, 0)); }
  void remake(Tape::Class klass) {
    klass_ = klass;
    tape_.hold(klass_, held_ = bytes_);
  }

 private:
  Tape& tape_;
  Tape::Class klass_;
  int64_t bytes_, held_;
};

}  // namespace moebius::train
