// Where jobs run: processes of this machine (local_engine.h) or a cluster (slurm_engine.h).
//
// An attempt is one start of a job, numbered from 1. Engines promise that no two attempts of a job live at
// the same time, and that starting an attempt twice starts it once: the dispatcher may be killed between
// asking and writing down that it asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace moebius::queue {

struct Launch {
  int64_t job = 0, attempt = 0;
  int workers = 1;
  int64_t width = 1;  // places of one worker
  std::string name;
  std::vector<std::string> command;  // {workers} in an argument stands for the number of workers
  std::string folder;
  double length_s = 0;  // estimated, on one worker
};

struct RunStatus {
  enum class Kind {
    none,     // never started, or gone without a word
    pending,  // accepted, not running yet
    running,
    exited,
  };
  Kind kind = Kind::none;
  int code = 0;  // exited: exit code, or 128 + signal
};

class Engine {
 public:
  virtual ~Engine() = default;
  // kUnavailable: try again later. kInvalid: it will never start.
  virtual Result<void> start(const Launch& launch) = 0;
  virtual Result<RunStatus> status(int64_t job, int64_t attempt) = 0;
  // Asks the attempt to save and end, or, with `now`, ends it. Asking again does no harm.
  virtual Result<void> stop(int64_t job, int64_t attempt, bool now) = 0;
};

// The command with the number of workers put in.
std::vector<std::string> with_workers(const std::vector<std::string>& command, int workers);

}  // namespace moebius::queue
