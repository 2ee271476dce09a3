// Several processes of this program on this machine, for `--nproc N`: what torchrun does on one node.
#pragma once

#include <string>
#include <vector>

namespace moebius::cli {

struct LaunchOptions {
  int num_processes = 1;
  std::vector<std::string> arguments;  // of each, without the program's name
  int threads_per_process = 1;         // OMP_NUM_THREADS, unless that is set
};

// Starts the processes with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and
// waits for all. The first one's output is this process's; of the others only what they write to stderr is
// shown, each line with its rank. SIGINT and SIGTERM are handed on. When one fails, it is named in one
// message, and those that do not end by themselves within kGraceSeconds are killed. Exit code: 0 when all
// ended well, else that of the first that failed (128 + signal when one killed it).
inline constexpr double kGraceSeconds = 5;
int launch(const LaunchOptions& options);

// The arguments of this process without `--nproc N`.
std::vector<std::string> arguments_without_nproc();

}  // namespace moebius::cli
