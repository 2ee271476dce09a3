// Jobs on a Slurm cluster, reached by its commands or by its REST daemon (slurm_client.h).
//
// An attempt is a Slurm job named moebius-QUEUE-JOB-ATTEMPT; QUEUE tells queues of one user apart. Its name
// is looked up before it is submitted, so that an attempt that was asked for twice runs once. The batch
// script writes the command's exit code beside the log (exit.ATTEMPT, as local processes do), so what
// happened stays known when Slurm has forgotten the job; the queue's folder must therefore be shared with the
// nodes. Pausing is SIGTERM to the command, which saves and ends; going on is another attempt, of another
// size if need be (Slurm itself requeues with the same size only). Jobs are submitted with --no-requeue: this
// queue requeues them.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "queue/engine.h"
#include "queue/slurm_client.h"

namespace moebius::queue {

struct SlurmOptions {
  std::string queue_name;           // letters and digits; unique among the user's queues
  std::string per_worker = "cpus";  // what a worker's width asks for: "cpus" (--cpus-per-task) or "gpus"
  double status_every_s = 2;        // Slurm is asked for its jobs at most so often
};

class SlurmEngine final : public Engine {
 public:
  SlurmEngine(std::filesystem::path folder, SlurmOptions options, std::unique_ptr<SlurmClient> slurm);

  // Whether the cluster answers; the reason, for people, when it does not.
  Result<void> reach() { return slurm_->reach(); }
  Result<void> start(const Launch& launch) override;
  Result<RunStatus> status(int64_t job, int64_t attempt) override;
  Result<void> stop(int64_t job, int64_t attempt, bool now) override;

  // Keeps a pending attempt from starting, and lets it.
  Result<void> hold(int64_t job, int64_t attempt, bool held);

 private:
  Result<void> list(bool afresh);
  std::string name_of(int64_t job, int64_t attempt) const;
  std::filesystem::path folder_of(int64_t job) const { return folder_ / "jobs" / std::to_string(job); }

  std::filesystem::path folder_;
  SlurmOptions options_;
  std::unique_ptr<SlurmClient> slurm_;
  std::map<std::string, SlurmJob> listed_;  // by name
  double listed_at_s_ = -1e9;
};

}  // namespace moebius::queue
