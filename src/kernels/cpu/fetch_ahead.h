// How far ahead a stream of weights from memory is asked for, in bytes: into the second-level cache, and then
// into the nearest. The former has more lines on their way from memory than the latter could, and hardware
// fetches ahead within a page only.
#pragma once

#include <cstdint>

namespace moebius::kernels::cpu {

inline constexpr int64_t kFarAhead = 16384, kNearAhead = 1024;

}  // namespace moebius::kernels::cpu
