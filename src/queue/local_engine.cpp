#include "queue/local_engine.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "queue/fault_point.h"

namespace moebius::queue {
namespace {

namespace fs = std::filesystem;

struct Descriptor {
  explicit Descriptor(int number) : fd(number) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

// What the supervisor needs, made before the fork: behind it only system calls are safe, other threads may
// have held any lock.
struct Prepared {
  std::vector<std::string> arguments, environment;
  std::vector<char*> argv, envp;
  std::string program, folder, log, pid_file, exit_file, temporary, job_folder;
};

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  for (std::string& each : strings) list.push_back(each.data());
  list.push_back(nullptr);
  return list;
}

// The file that execvp would run; empty when there is none.
std::string find_program(const std::string& name, const std::string& folder) {
  const auto runs = [](const fs::path& path) {
    return ::access(path.c_str(), X_OK) == 0 && !fs::is_directory(path);
  };
  if (name.find('/') != std::string::npos) {
    const fs::path path = fs::path(folder) / name;
    return runs(path) ? path.string() : std::string();
  }
  const char* variable = std::getenv("PATH");
  std::stringstream list(variable == nullptr ? "/usr/bin:/bin" : variable);
  for (std::string entry; std::getline(list, entry, ':');) {
    const fs::path path = fs::path(folder) / entry / name;
    if (runs(path)) return path.string();
  }
  return {};
}

// Start of a process in clock ticks after boot, field 22 of /proc/PID/stat; together with the number it names
// a process for good. 0 when there is none. Only system calls.
int64_t start_ticks(pid_t pid) {
  char name[64], text[1024];
  std::snprintf(name, sizeof name, "/proc/%d/stat", static_cast<int>(pid));
  const int fd = ::open(name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const ssize_t length = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  if (length <= 0) return 0;
  text[length] = 0;
  const char* at = std::strrchr(text, ')');  // the name may hold blanks
  for (int field = 2; at != nullptr && field < 22; ++field) at = std::strchr(at + 1, ' ');
  return at == nullptr ? 0 : std::strtoll(at + 1, nullptr, 10);
}

// A short text under its name, whole or not at all. Only system calls.
void write_whole(const Prepared& p, const std::string& file, const char* text, int length) {
  const int fd = ::open(p.temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return;
  const bool written = ::write(fd, text, static_cast<size_t>(length)) == length && ::fsync(fd) == 0;
  ::close(fd);
  if (!written || ::rename(p.temporary.c_str(), file.c_str()) != 0) return;
  const int folder = ::open(p.job_folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  ::fsync(folder);
  ::close(folder);
}

void reset_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGPIPE, SIGUSR1, SIGUSR2})
    std::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

[[noreturn]] void run_job(const Prepared& p, pid_t supervisor) {
  ::setpgid(0, 0);
  reset_signals();
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != supervisor) ::_exit(143);  // it was killed before that was set
  if (::chdir(p.folder.c_str()) == 0) ::execve(p.program.c_str(), p.argv.data(), p.envp.data());
  char text[512];
  const int length = std::snprintf(text, sizeof text, "moebius queue: cannot start %s in %s: %s\n",
                                   p.program.c_str(), p.folder.c_str(), std::strerror(errno));
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, static_cast<size_t>(length));
  ::_exit(127);
}

// The fork that waits for the job. `lock` stays open here and in the job.
[[noreturn]] void supervise(const Prepared& p, int lock) {
  g_fault_points_left = 0;
  ::setsid();
  reset_signals();
  std::signal(SIGHUP, SIG_IGN);
  const int null = ::open("/dev/null", O_RDONLY);
  const int log = ::open(p.log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  ::dup2(null, STDIN_FILENO);
  ::dup2(log < 0 ? null : log, STDOUT_FILENO);
  ::dup2(STDOUT_FILENO, STDERR_FILENO);
  const int kept = ::fcntl(lock, F_DUPFD, 3);  // without close-on-exec
  if (kept > 3) ::close_range(3, static_cast<unsigned>(kept) - 1, 0);
  ::close_range(static_cast<unsigned>(kept) + 1, ~0U, 0);
  const pid_t supervisor = ::getpid();
  const pid_t job = ::fork();
  if (job == 0) run_job(p, supervisor);
  int code = 127;
  char text[64];
  if (job > 0) {
    ::setpgid(job, job);
    write_whole(p, p.pid_file, text,
                std::snprintf(text, sizeof text, "%d %lld\n", static_cast<int>(job),
                              static_cast<long long>(start_ticks(job))));
    int status = 0;
    while (::waitpid(job, &status, 0) < 0 && errno == EINTR) {
    }
    code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  write_whole(p, p.exit_file, text, std::snprintf(text, sizeof text, "%d\n", code));
  ::_exit(0);
}

std::optional<int> read_exit_code(const fs::path& file) {
  std::ifstream in(file);
  int code = 0;
  if (!(in >> code)) return std::nullopt;
  return code;
}

// A free lock: nothing of the job lives. Takes it for a moment.
bool lock_is_free(const fs::path& file) {
  const Descriptor lock(::open(file.c_str(), O_RDWR | O_CLOEXEC));
  if (lock.fd < 0) return errno == ENOENT;
  return ::flock(lock.fd, LOCK_EX | LOCK_NB) == 0;
}

}  // namespace

std::vector<std::string> with_workers(const std::vector<std::string>& command, int workers) {
  constexpr std::string_view kPlace = "{workers}";
  std::vector<std::string> result = command;
  for (std::string& each : result) {
    for (size_t at = 0; (at = each.find(kPlace, at)) != std::string::npos;)
      each.replace(at, kPlace.size(), std::to_string(workers));
  }
  return result;
}

Result<void> LocalEngine::start(const Launch& launch) {
  Prepared p;
  p.job_folder = folder_of(launch.job).string();
  const std::string attempt = std::to_string(launch.attempt);
  p.exit_file = p.job_folder + "/exit." + attempt;
  p.pid_file = p.job_folder + "/pid." + attempt;
  p.temporary = p.job_folder + "/.new";
  p.log = p.job_folder + "/log";
  p.folder = launch.folder;
  p.arguments = with_workers(launch.command, launch.workers);
  p.program = find_program(p.arguments.at(0), launch.folder);
  if (p.program.empty())
    return make_error(ErrorKind::kInvalid, "there is no program '", p.arguments[0],
                      "' in PATH (as the queue's dispatcher has it) or ", launch.folder);
  for (char** each = environ; *each != nullptr; ++each) {
    if (std::strncmp(*each, "MOEBIUS_QUEUE_", 14) != 0) p.environment.emplace_back(*each);
  }
  p.environment.push_back("MOEBIUS_QUEUE_JOB=" + std::to_string(launch.job));
  p.environment.push_back("MOEBIUS_QUEUE_ATTEMPT=" + attempt);
  p.environment.push_back("MOEBIUS_QUEUE_WORKERS=" + std::to_string(launch.workers));
  p.argv = pointers(p.arguments);
  p.envp = pointers(p.environment);
  try {
    make_folders(p.job_folder);
  } catch (const UserError& error) {
    return make_error(ErrorKind::kUnavailable, error.what());
  }
  const Descriptor lock(::open((p.job_folder + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  fault_point();
  if (lock.fd < 0) return make_error(ErrorKind::kUnavailable, p.job_folder, "/lock: ", std::strerror(errno));
  if (::flock(lock.fd, LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorKind::kUnavailable, "processes of an earlier start still live");
  if (read_exit_code(p.exit_file)) return {};  // it ran already
  fault_point();
  const pid_t supervisor = ::fork();
  if (supervisor == 0) supervise(p, lock.fd);
  fault_point();
  if (supervisor < 0) return make_error(ErrorKind::kUnavailable, "fork: ", std::strerror(errno));
  supervisors_.push_back(supervisor);
  return {};
}

Result<RunStatus> LocalEngine::status(int64_t job, int64_t attempt) {
  reap();
  const fs::path exit_file = folder_of(job) / ("exit." + std::to_string(attempt));
  // Looked at again behind the lock: it may have been written in between.
  if (const auto code = read_exit_code(exit_file)) return RunStatus{RunStatus::Kind::exited, *code};
  if (!lock_is_free(folder_of(job) / "lock")) return RunStatus{RunStatus::Kind::running};
  if (const auto code = read_exit_code(exit_file)) return RunStatus{RunStatus::Kind::exited, *code};
  return RunStatus{RunStatus::Kind::none};
}

Result<void> LocalEngine::stop(int64_t job, int64_t attempt, bool now) {
  std::ifstream in(folder_of(job) / ("pid." + std::to_string(attempt)));
  pid_t pid = 0;
  int64_t ticks = 0;
  if (!(in >> pid >> ticks)) return {};  // not started yet, or over; the caller asks again
  if (pid <= 1 || start_ticks(pid) != ticks) return {};
  // Asked once: `moebius train` takes a second SIGTERM for "at once, without saving".
  const fs::path asked = folder_of(job) / ("stop." + std::to_string(attempt));
  if (!now && fs::exists(asked)) return {};
  if (::kill(-pid, now ? SIGKILL : SIGTERM) != 0 && errno != ESRCH)
    return make_error(ErrorKind::kPermission, "cannot signal process ", pid, ": ", std::strerror(errno));
  fault_point();
  const Descriptor mark(::open(asked.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  return {};
}

void LocalEngine::reap() {
  std::erase_if(supervisors_, [](int pid) { return ::waitpid(pid, nullptr, WNOHANG) != 0; });
}

}  // namespace moebius::queue
