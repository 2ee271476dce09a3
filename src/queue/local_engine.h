// Jobs as processes of this machine that outlive the dispatcher.
//
// jobs/ID/lock is locked (flock) before the fork and the lock is handed to the job's processes, so that it is
// held exactly as long as one of them lives, whoever is killed in between: a free lock means that nothing
// runs. Between dispatcher and job stands a supervisor, a fork that does nothing but wait and write the exit
// code to exit.ATTEMPT. When it is killed the job gets SIGTERM. What the job prints goes to jobs/ID/log.
#pragma once

#include <filesystem>
#include <vector>

#include "queue/engine.h"

namespace moebius::queue {

class LocalEngine final : public Engine {
 public:
  // `folder`: that of the queue; jobs/ is below it.
  explicit LocalEngine(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~LocalEngine() override { reap(); }

  Result<void> start(const Launch& launch) override;
  Result<RunStatus> status(int64_t job, int64_t attempt) override;
  Result<void> stop(int64_t job, int64_t attempt, bool now) override;

 private:
  void reap();
  std::filesystem::path folder_of(int64_t job) const { return folder_ / "jobs" / std::to_string(job); }

  std::filesystem::path folder_;
  std::vector<int> supervisors_;  // children of this process
};

}  // namespace moebius::queue
