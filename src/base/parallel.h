// Data parallelism on the CPU: one shared OpenMP team (the same runtime that libtorch uses, so the two never
// oversubscribe). num_threads() follows set_num_threads(), which also bounds libtorch's operators.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace moebius {

int num_threads();
void set_num_threads(int count);

// Non-owning reference to a callable void(int64_t begin, int64_t end).
class RangeBody {
 public:
  template <class F>
  RangeBody(const F& f)  // NOLINT: implicit, so that a lambda can be passed in place
      : object_(&f), call_([](const void* o, int64_t b, int64_t e) { (*static_cast<const F*>(o))(b, e); }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

// Splits [begin, end) into at most num_threads() contiguous ranges of at least `grain` elements and runs body
// on each; inline when one range is enough or when already inside a parallel region. The split depends only
// on the extent, grain and num_threads(), so results that depend on it are reproducible for a fixed thread
// count.
void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeBody body);

// Runs body(i, i + 1) for every i in [0, count), handed out one at a time to whichever thread is free: for
// uneven work whose result does not depend on which thread does it.
void parallel_tasks(int64_t count, RangeBody body);

}  // namespace moebius
