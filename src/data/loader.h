// Makes micro-batches ahead of the training step, in a thread of its own.
#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"

namespace moebius::data {

// Where batches come from. fill() is a pure function of (step, micro); one thread at a time calls it.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual void fill(int64_t step, int64_t micro, Batch& batch) = 0;
};

struct LoaderOptions {
  int64_t first_step = 0;     // where a resumed run goes on
  int64_t micro_batches = 1;  // per step
  int64_t depth = 2;          // batches made ahead
};

// Delivers (first_step, 0), (first_step, 1), … (first_step + 1, 0), … without end, always in this order. An
// exception of the source is thrown by the next() that would have delivered the batch, and by every next()
// after it. The destructor waits for at most the batch that is being made.
class Loader {
 public:
  Loader(std::unique_ptr<BatchSource> source, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next batch; waits when it is not ready. The reference stays valid until the next call, and the batch
  // may be changed or swapped for another.
  Batch& next();

  // Seconds that next() has waited in all: the time that training lost to data.
  double wait_seconds() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moebius::data
