// Jobs on a Slurm cluster, through its own commands (sbatch, squeue, scontrol, scancel, sacct), which know
// the cluster's version and rights.
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
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "queue/engine.h"

namespace moebius::queue {

struct SlurmOptions {
  std::string queue_name;              // letters and digits; unique among the user's queues
  std::vector<std::string> arguments;  // further ones for sbatch: --partition=gpu, --account=x
  std::string per_worker = "cpus";     // what a worker's width asks for: "cpus" (--cpus-per-task) or "gpus"
  double status_every_s = 2;           // squeue is asked at most so often
};

// What a command printed, and its exit code; kUnavailable when it could not be run.
struct CommandOutput {
  int code = 0;
  std::string out, err;
};
using CommandRunner = std::function<Result<CommandOutput>(const std::vector<std::string>&)>;
// Runs a program and waits for it, `timeout_s` at most.
Result<CommandOutput> run_command(const std::vector<std::string>& command, double timeout_s = 30);

class SlurmEngine final : public Engine {
 public:
  SlurmEngine(std::filesystem::path folder, SlurmOptions options, CommandRunner run = {});

  // Whether the cluster answers; the reason, for people, when it does not.
  Result<void> reach();
  Result<void> start(const Launch& launch) override;
  Result<RunStatus> status(int64_t job, int64_t attempt) override;
  Result<void> stop(int64_t job, int64_t attempt, bool now) override;

  // Keeps a pending attempt from starting, and lets it (scontrol hold, release).
  Result<void> hold(int64_t job, int64_t attempt, bool held);

 private:
  struct Listed {
    std::string id, state;
  };
  Result<CommandOutput> slurm(const std::vector<std::string>& command);
  Result<void> list(bool afresh);
  std::string name_of(int64_t job, int64_t attempt) const;
  std::filesystem::path folder_of(int64_t job) const { return folder_ / "jobs" / std::to_string(job); }

  std::filesystem::path folder_;
  SlurmOptions options_;
  CommandRunner run_;
  std::map<std::string, Listed> listed_;  // by name
  double listed_at_s_ = -1e9;
};

}  // namespace moebius::queue
