#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sstream>

#include "base/clock.h"
#include "base/concat.h"
#include "queue/slurm_client.h"

namespace moebius::queue {
namespace {

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

class SlurmCommands final : public SlurmClient {
 public:
  SlurmCommands(std::vector<std::string> arguments, CommandRunner run)
      : arguments_(std::move(arguments)), run_(std::move(run)) {
    if (!run_) run_ = [](const std::vector<std::string>& command) { return run_command(command); };
  }

  Result<void> reach() override {
    const Result<CommandOutput> done = slurm({"scontrol", "ping"});
    if (!done) return done.error();
    if (done->out.find("UP") != std::string::npos) return {};
    return make_error(ErrorKind::kUnavailable, "Slurm's controller is out of reach: ", first_line(done->out));
  }

  Result<std::vector<SlurmJob>> list() override {
    const Result<CommandOutput> done =
        slurm({"squeue", "--me", "--noheader", "--states=all", "--format=%i %T %j"});
    if (!done) return done.error();
    std::vector<SlurmJob> jobs;
    std::istringstream lines(done->out);
    for (std::string id, state, name; lines >> id >> state && std::getline(lines >> std::ws, name);)
      jobs.push_back({id, name, state});
    return jobs;
  }

  Result<std::string> submit(const SlurmSubmission& job) override {
    std::vector<std::string> command = {
        "sbatch",     "--parsable",         "--job-name=" + job.name, "--no-requeue",
        "--ntasks=1", "--open-mode=append", "--output=" + job.log,    "--chdir=" + job.folder};
    command.push_back((job.per_worker == "gpus" ? "--gpus=" : "--cpus-per-task=") +
                      std::to_string(job.places));
    command.insert(command.end(), arguments_.begin(), arguments_.end());
    command.push_back(job.script_file);
    const Result<CommandOutput> done = slurm(command);
    if (!done) return done.error();
    return first_line(done->out);
  }

  Result<void> ask(const std::string& id) override {
    return succeeds({"scancel", "--batch", "--signal=TERM", id});
  }

  Result<void> cancel(const std::string& id, bool if_pending) override {
    return if_pending ? succeeds({"scancel", "--state=PENDING", id}) : succeeds({"scancel", id});
  }

  Result<void> hold(const std::string& id, bool held) override {
    return succeeds({"scontrol", held ? "hold" : "release", id});
  }

 private:
  Result<void> succeeds(const std::vector<std::string>& command) {
    const Result<CommandOutput> done = slurm(command);
    return done ? Result<void>() : done.error();
  }

  // A command that must succeed. What it says on failure is what people need to see.
  Result<CommandOutput> slurm(const std::vector<std::string>& command) {
    Result<CommandOutput> done = run_(command);
    if (!done) {
      const char* way_out =
          done.error().kind == ErrorKind::kNotFound ? "; install Slurm's client commands" : "";
      return make_error(ErrorKind::kUnavailable, "Slurm: ", done.error().message, way_out);
    }
    if (done->code == 0) return done;
    const std::string said = first_line(done->err.empty() ? done->out : done->err);
    const bool unreachable = done->err.find("Unable to contact") != std::string::npos ||
                             done->err.find("Connection refused") != std::string::npos ||
                             done->err.find("controller not responding") != std::string::npos ||
                             said.ends_with(" is DOWN");  // scontrol ping
    return make_error(unreachable ? ErrorKind::kUnavailable : ErrorKind::kInvalid,
                      unreachable ? "Slurm's controller is out of reach: " : "Slurm refuses: ", command[0],
                      ": ", said);
  }

  std::vector<std::string> arguments_;
  CommandRunner run_;
};

}  // namespace

Result<CommandOutput> run_command(const std::vector<std::string>& command, double timeout_s) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0)
    return make_error(ErrorKind::kUnavailable, "pipe: ", std::strerror(errno));
  if (::pipe2(err, O_CLOEXEC) != 0) {
    ::close(out[0]);
    ::close(out[1]);
    return make_error(ErrorKind::kUnavailable, "pipe: ", std::strerror(errno));
  }
  std::vector<char*> argv;
  for (const std::string& each : command) argv.push_back(const_cast<char*>(each.c_str()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out[1], STDOUT_FILENO);
    ::dup2(err[1], STDERR_FILENO);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(out[1]);
  ::close(err[1]);
  CommandOutput result;
  pollfd pipes[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  const double end_s = steady_seconds() + timeout_s;
  bool late = child < 0;
  while (!late && (pipes[0].fd >= 0 || pipes[1].fd >= 0)) {
    const double left_s = end_s - steady_seconds();
    if (left_s <= 0 || ::poll(pipes, 2, static_cast<int>(left_s * 1000) + 1) == 0) {
      late = left_s <= 0;
      continue;
    }
    for (int i = 0; i < 2; ++i) {
      if (pipes[i].fd < 0 || pipes[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t got = ::read(pipes[i].fd, buffer, sizeof buffer);
      if (got > 0) {
        (i == 0 ? result.out : result.err).append(buffer, static_cast<size_t>(got));
      } else if (got == 0 || errno != EINTR) {
        pipes[i].fd = -1;
      }
    }
  }
  ::close(out[0]);
  ::close(err[0]);
  if (child < 0) return make_error(ErrorKind::kUnavailable, "fork: ", std::strerror(errno));
  if (late) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (late) return make_error(ErrorKind::kTimeout, command[0], " did not end within ", timeout_s, " s");
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (result.code == 127 && result.out.empty() && result.err.empty())
    return make_error(ErrorKind::kNotFound, "there is no program ", command[0], " in PATH");
  return result;
}

std::unique_ptr<SlurmClient> make_slurm_commands(std::vector<std::string> arguments, CommandRunner run) {
  return std::make_unique<SlurmCommands>(std::move(arguments), std::move(run));
}

}  // namespace moebius::queue
