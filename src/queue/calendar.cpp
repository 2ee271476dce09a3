#include "queue/calendar.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace moebius::queue {

int64_t Calendar::used_at(std::map<double, int64_t>::const_iterator after) const {
  return after == used_.begin() ? base_ : std::prev(after)->second;
}

void Calendar::add(double begin_s, double end_s, int64_t width) {
  if (!capacity_ || !(begin_s < end_s)) return;
  const auto border = [&](double time) {
    const auto found = used_.lower_bound(time);
    if (found != used_.end() && found->first == time) return found;
    return used_.emplace_hint(found, time, used_at(found));
  };
  const auto first = border(begin_s);
  const auto last = border(end_s);
  for (auto each = first; each != last; ++each) {
    each->second += width;
    MOEBIUS_CHECK(each->second >= 0 && each->second <= *capacity_, "used ", each->second, " of ", *capacity_,
                  " at ", each->first);
  }
  // Borders that no longer change anything go, so that the map stays as small as what is reserved.
  const auto drop_if_flat = [&](std::map<double, int64_t>::iterator each) {
    if (each->second == used_at(each)) used_.erase(each);
  };
  drop_if_flat(last);
  drop_if_flat(used_.find(begin_s));
}

int Calendar::free_workers(double begin_s, double end_s, int64_t width, int most) const {
  if (!capacity_) return most;
  auto after = used_.upper_bound(begin_s);
  int64_t used = used_at(after);
  for (; after != used_.end() && after->first < end_s; ++after) used = std::max(used, after->second);
  return static_cast<int>(std::min<int64_t>(most, (*capacity_ - used) / width));
}

double Calendar::next_fit(double begin_s, double duration_s, int64_t width) const {
  if (!capacity_) return begin_s;
  MOEBIUS_CHECK_LE(width, *capacity_);
  double start = begin_s;
  auto after = used_.upper_bound(begin_s);
  if (used_at(after) + width > *capacity_) {
    while (after->second + width > *capacity_) ++after;  // the last entry is 0: nothing is reserved for ever
    start = after->first;
    ++after;
  }
  while (after != used_.end() && after->first < start + duration_s) {
    if (after->second + width <= *capacity_) {
      ++after;
      continue;
    }
    while (after->second + width > *capacity_) ++after;
    start = after->first;
    ++after;
  }
  return start;
}

std::vector<Piece> Calendar::free_stretches(double begin_s, double end_s, int64_t width, int most,
                                            double keep_free) const {
  std::vector<Piece> stretches;
  if (!capacity_) {
    stretches.push_back({begin_s, end_s, most});
    return stretches;
  }
  const auto usable = static_cast<int64_t>(static_cast<double>(*capacity_) * (1 - keep_free));
  auto after = used_.upper_bound(begin_s);
  double begin = begin_s;
  int64_t used = used_at(after);
  while (begin < end_s) {
    const double end = after == used_.end() ? end_s : std::min(after->first, end_s);
    const int workers = static_cast<int>(std::clamp<int64_t>((usable - used) / width, 0, most));
    if (!stretches.empty() && stretches.back().workers == workers) {
      stretches.back().end_s = end;
    } else {
      stretches.push_back({begin, end, workers});
    }
    begin = end;
    if (after != used_.end()) {
      used = after->second;
      ++after;
    }
  }
  return stretches;
}

void Calendar::forget_before(double time_s) {
  const auto after = used_.upper_bound(time_s);
  if (after == used_.begin()) return;
  base_ = std::prev(after)->second;
  used_.erase(used_.begin(), after);
}

}  // namespace moebius::queue
