// What the queue asks of Slurm, whichever way it is reached: by its own commands, or by its REST daemon
// slurmrestd where those are not installed or the cluster is elsewhere. Both give the same answers and
// errors:
//   kUnavailable  Slurm is out of reach; nothing is known, try again
//   kInvalid      Slurm refuses this, and would again
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/http.h"
#include "base/result.h"

namespace moebius::queue {

struct SlurmJob {
  std::string id, name, state;  // state: Slurm's word, "RUNNING"
};

struct SlurmSubmission {
  std::string name;
  std::string script;       // text of the batch script
  std::string script_file;  // where it was written
  std::string log, folder;  // absolute
  int64_t places = 1;
  std::string per_worker = "cpus";  // what a place is: "cpus" or "gpus"
};

class SlurmClient {
 public:
  virtual ~SlurmClient() = default;
  // Whether the cluster answers; the reason, for people, when it does not.
  virtual Result<void> reach() = 0;
  virtual Result<std::vector<SlurmJob>> list() = 0;  // of this user
  virtual Result<std::string> submit(const SlurmSubmission& job) = 0;
  // Tells the batch script alone that it should end (SIGTERM or SIGURG, which its commands do not see).
  virtual Result<void> ask(const std::string& id) = 0;
  // Ends a job; with `if_pending` only one that has not begun.
  virtual Result<void> cancel(const std::string& id, bool if_pending) = 0;
  // Keeps a pending job from starting, or lets it.
  virtual Result<void> hold(const std::string& id, bool held) = 0;
};

// By sbatch, squeue, scontrol and scancel, which know the cluster's version and rights.

// What a command printed, and its exit code; kUnavailable when it could not be run.
struct CommandOutput {
  int code = 0;
  std::string out, err;
};
using CommandRunner = std::function<Result<CommandOutput>(const std::vector<std::string>&)>;
// Runs a program and waits for it, `timeout_s` at most.
Result<CommandOutput> run_command(const std::vector<std::string>& command, double timeout_s = 30);

// `arguments`: further ones for sbatch (--partition=gpu). `run`: for tests.
std::unique_ptr<SlurmClient> make_slurm_commands(std::vector<std::string> arguments, CommandRunner run = {});

// By slurmrestd. Its interface has a version of its own, of which a daemon knows two to four; v0.0.38 (Slurm
// 22.05) is run in tests against the distribution's daemon, later ones (to v0.0.44) are spoken as documented.
struct SlurmRestOptions {
  std::string url;  // http://HOST:PORT, https://..., unix:/run/slurmrestd.socket
  // Token of the user (header X-SLURM-USER-TOKEN): contents of the file, read anew for each request, so that
  // it can be renewed while the queue runs; else $SLURM_JWT; else none, for sockets that know the user.
  std::string token_file = {};
  std::string user = {};     // its name
  std::string version = {};  // "v0.0.38"; empty: the highest that both know
  // Further properties of a submitted job, as for sbatch: --partition=gpu, --time=600. --NAME=VALUE becomes
  // the property NAME, with underscores.
  std::vector<std::string> arguments = {};
};
std::unique_ptr<SlurmClient> make_slurm_rest(SlurmRestOptions options, std::shared_ptr<HttpClient> http);

}  // namespace moebius::queue
