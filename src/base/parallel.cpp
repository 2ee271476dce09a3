#include "base/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace moebius {

int num_threads() {
  return omp_get_max_threads();
}

void set_num_threads(int count) {
  omp_set_num_threads(count);
}

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeBody body) {
  const int64_t extent = end - begin;
  if (extent <= 0) return;
  const int64_t num_ranges =
      std::min<int64_t>(num_threads(), (extent + grain - 1) / std::max<int64_t>(grain, 1));
  if (num_ranges <= 1 || omp_in_parallel()) {
    body(begin, end);
    return;
  }
  const int64_t chunk = (extent + num_ranges - 1) / num_ranges;
  std::exception_ptr error;
#pragma omp parallel num_threads(static_cast <int>(num_ranges))
  {
    const int64_t first = begin + omp_get_thread_num() * chunk;
    const int64_t last = std::min(end, first + chunk);
    try {
      if (first < last) body(first, last);
    } catch (...) {
#pragma omp critical(moebius_parallel_error)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void parallel_tasks(int64_t count, RangeBody body) {
  if (count <= 0) return;
  if (count == 1 || num_threads() == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < count; ++i) body(i, i + 1);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
#pragma omp parallel num_threads(static_cast <int>(std::min <int64_t>(num_threads(), count)))
  {
    try {
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i, i + 1);
    } catch (...) {
#pragma omp critical(moebius_parallel_error)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace moebius
