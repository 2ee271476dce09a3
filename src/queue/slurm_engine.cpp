#include "queue/slurm_engine.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"

namespace moebius::queue {
namespace {

namespace fs = std::filesystem;

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// The batch script. The command is a child, so that SIGTERM (scancel --batch --signal) can be handed on to
// it, once, and its exit code be written down. stop.ATTEMPT says that the signal came: one that is sent
// before the script runs is lost. exit.ATTEMPT appears whole or not at all.
std::string script_of(const Launch& launch, const fs::path& folder) {
  std::string command;
  for (const std::string& each : with_workers(launch.command, launch.workers)) command += quoted(each) + " ";
  std::ostringstream out;
  out << "#!/bin/bash\n"
      << "export MOEBIUS_QUEUE_JOB=" << launch.job << " MOEBIUS_QUEUE_ATTEMPT=" << launch.attempt
      << " MOEBIUS_QUEUE_WORKERS=" << launch.workers << "\n"
      << "cd " << quoted(launch.folder) << " || exit 127\n"
      << "asked= child=\n"
      << "ask() { if [ -z \"$asked\" ]; then asked=1; : > "
      << quoted((folder / ("stop." + std::to_string(launch.attempt))).string())
      << "; [ -z \"$child\" ] || kill -TERM $child; fi; }\n"
      << "trap ask TERM\n"
      << command << "&\n"
      << "child=$!\n"
      << "[ -z \"$asked\" ] || kill -TERM $child\n"
      << "wait $child; code=$?\n"
      << "while kill -0 $child 2>/dev/null; do wait $child; code=$?; done\n"
      << "echo $code > " << quoted((folder / ".new").string()) << " && mv "
      << quoted((folder / ".new").string()) << " "
      << quoted((folder / ("exit." + std::to_string(launch.attempt))).string()) << "\n"
      << "exit $code\n";
  return out.str();
}

bool is_pending(const std::string& state) {
  return state == "PENDING" || state == "CONFIGURING" || state == "SUSPENDED" || state == "REQUEUED" ||
         state == "REQUEUE_HOLD" || state == "SPECIAL_EXIT";
}

bool is_running(const std::string& state) {
  return state == "RUNNING" || state == "COMPLETING" || state == "STAGE_OUT" || state == "SIGNALING" ||
         state == "RESIZING" || state == "STOPPED";
}

std::optional<int> exit_code_in(const fs::path& file) {
  std::ifstream in(file);
  int code = 0;
  if (!(in >> code)) return std::nullopt;
  return code;
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

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

SlurmEngine::SlurmEngine(fs::path folder, SlurmOptions options, CommandRunner run)
    : folder_(std::move(folder)), options_(std::move(options)), run_(std::move(run)) {
  if (!run_) run_ = [](const std::vector<std::string>& command) { return run_command(command); };
}

std::string SlurmEngine::name_of(int64_t job, int64_t attempt) const {
  return concat("moebius-", options_.queue_name, "-", job, "-", attempt);
}

// A Slurm command that must succeed. What it says on failure is what people need to see.
Result<CommandOutput> SlurmEngine::slurm(const std::vector<std::string>& command) {
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
                           done->err.find("controller not responding") != std::string::npos;
  return make_error(unreachable ? ErrorKind::kUnavailable : ErrorKind::kInvalid,
                    unreachable ? "Slurm's controller is out of reach: " : "Slurm refuses: ", command[0],
                    ": ", said);
}

Result<void> SlurmEngine::reach() {
  const Result<CommandOutput> done = slurm({"scontrol", "ping"});
  if (!done) return done.error();
  if (done->out.find("UP") != std::string::npos) return {};
  return make_error(ErrorKind::kUnavailable, "Slurm's controller is out of reach: ", first_line(done->out));
}

// Names and states of this queue's attempts, from one squeue for all of them.
Result<void> SlurmEngine::list(bool afresh) {
  const double now_s = steady_seconds();
  if (!afresh && now_s - listed_at_s_ < options_.status_every_s) return {};
  const Result<CommandOutput> done =
      slurm({"squeue", "--me", "--noheader", "--states=all", "--format=%i %T %j"});
  if (!done) return done.error();
  listed_.clear();
  listed_at_s_ = now_s;
  std::istringstream lines(done->out);
  const std::string prefix = "moebius-" + options_.queue_name + "-";
  for (std::string id, state, name; lines >> id >> state && std::getline(lines >> std::ws, name);) {
    if (name.starts_with(prefix)) listed_[name] = {id, state};
  }
  return {};
}

Result<void> SlurmEngine::start(const Launch& launch) {
  const fs::path folder = folder_of(launch.job);
  const std::string name = name_of(launch.job, launch.attempt);
  if (exit_code_in(folder / ("exit." + std::to_string(launch.attempt)))) return {};
  if (const auto listed = list(true); !listed) return listed.error();
  if (listed_.contains(name)) return {};  // it was submitted before a kill
  const std::string others = concat("moebius-", options_.queue_name, "-", launch.job, "-");
  for (const auto& [other, entry] : listed_) {
    if (other.starts_with(others) && (is_pending(entry.state) || is_running(entry.state)))
      return make_error(ErrorKind::kUnavailable, "an earlier start, Slurm job ", entry.id, ", still lives");
  }
  const fs::path script = folder / ("script." + std::to_string(launch.attempt));
  try {
    make_folders(folder);
    write_file_atomic(script, script_of(launch, folder));
  } catch (const UserError& error) {
    return make_error(ErrorKind::kUnavailable, error.what());
  }
  const int64_t places = launch.width * launch.workers;
  std::vector<std::string> command = {"sbatch",
                                      "--parsable",
                                      "--job-name=" + name,
                                      "--no-requeue",
                                      "--ntasks=1",
                                      "--open-mode=append",
                                      "--output=" + (folder / "log").string(),
                                      "--chdir=" + launch.folder};
  command.push_back((options_.per_worker == "gpus" ? "--gpus=" : "--cpus-per-task=") +
                    std::to_string(places));
  command.insert(command.end(), options_.arguments.begin(), options_.arguments.end());
  command.push_back(script.string());
  const Result<CommandOutput> done = slurm(command);
  if (!done) return done.error();
  listed_[name] = {first_line(done->out), "PENDING"};
  return {};
}

Result<RunStatus> SlurmEngine::status(int64_t job, int64_t attempt) {
  const fs::path exit_file = folder_of(job) / ("exit." + std::to_string(attempt));
  const auto exited = [&](int code) { return RunStatus{RunStatus::Kind::exited, code}; };
  if (const auto code = exit_code_in(exit_file)) return exited(*code);
  if (const auto listed = list(false); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found != listed_.end()) {
    if (is_pending(found->second.state)) return RunStatus{RunStatus::Kind::pending};
    if (is_running(found->second.state)) return RunStatus{RunStatus::Kind::running};
  }
  // It has ended, or Slurm has forgotten it; on a shared file system its exit code may come a moment later
  // than Slurm's word, and is looked for once more.
  if (const auto code = exit_code_in(exit_file)) return exited(*code);
  return RunStatus{RunStatus::Kind::none};
}

Result<void> SlurmEngine::stop(int64_t job, int64_t attempt, bool now) {
  // Until the batch script has heard it (script_of).
  const fs::path asked = folder_of(job) / ("stop." + std::to_string(attempt));
  if (!now && fs::exists(asked)) return {};
  if (const auto listed = list(true); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found == listed_.end()) return {};
  const std::string& id = found->second.id;
  std::vector<std::string> command = {"scancel"};
  const bool pending = is_pending(found->second.state);
  if (!now && pending) {
    command.emplace_back("--state=PENDING");  // one that has begun meanwhile is asked the next time
  } else if (!now) {
    if (!is_running(found->second.state)) return {};
    command.insert(command.end(), {"--batch", "--signal=TERM"});
  }
  command.push_back(id);
  if (const Result<CommandOutput> done = slurm(command); !done) return done.error();
  return {};
}

Result<void> SlurmEngine::hold(int64_t job, int64_t attempt, bool held) {
  if (const auto listed = list(true); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found == listed_.end()) return make_error(ErrorKind::kNotFound, "Slurm has no ", name_of(job, attempt));
  const Result<CommandOutput> done = slurm({"scontrol", held ? "hold" : "release", found->second.id});
  return done ? Result<void>() : done.error();
}

}  // namespace moebius::queue
