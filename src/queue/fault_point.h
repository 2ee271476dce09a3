// Places where a test may kill the process: before and after every statement of the queue's database, and
// between the system calls that start a job. Off unless a test arms it; then the n-th place is the last.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdint>

namespace moebius::queue {

inline int64_t g_fault_points_left = 0;  // 0: off

inline void fault_point() {
  if (g_fault_points_left > 0 && --g_fault_points_left == 0) ::kill(::getpid(), SIGKILL);
}

}  // namespace moebius::queue
