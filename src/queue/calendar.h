// Who uses how much of the machine when: reservations of width over time, against a fixed capacity.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace moebius::queue {

// A stretch of time with a constant number of workers.
struct Piece {
  double begin_s = 0, end_s = 0;
  int workers = 1;
};

class Calendar {
 public:
  // Without a capacity everything fits and nothing is kept.
  explicit Calendar(std::optional<int64_t> capacity) : capacity_(capacity) {}

  bool limited() const { return capacity_.has_value(); }
  void reserve(double begin_s, double end_s, int64_t width) { add(begin_s, end_s, width); }
  void release(double begin_s, double end_s, int64_t width) { add(begin_s, end_s, -width); }

  // Most times `width` that is free all through [begin, end), at most `most`.
  int free_workers(double begin_s, double end_s, int64_t width, int most) const;
  // Earliest time >= begin from which `width` is free for `duration`. Width <= capacity.
  double next_fit(double begin_s, double duration_s, int64_t width) const;
  // [begin, end) as stretches with a constant number of workers of `width` that fit, at most `most`; gaps
  // have 0. `keep_free`: share of the capacity that counts as taken.
  std::vector<Piece> free_stretches(double begin_s, double end_s, int64_t width, int most,
                                    double keep_free = 0) const;
  // Drops what lies before `time`; later calls must not ask about it.
  void forget_before(double time_s);

 private:
  void add(double begin_s, double end_s, int64_t width);
  int64_t used_at(std::map<double, int64_t>::const_iterator after) const;

  std::optional<int64_t> capacity_;
  std::map<double, int64_t> used_;  // from the key to the next one; before the first: base_
  int64_t base_ = 0;
};

}  // namespace moebius::queue
