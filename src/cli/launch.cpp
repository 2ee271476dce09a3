#include "cli/launch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "parallel/session.h"

extern char** environ;

namespace moebius::cli {
namespace {

constexpr int kExitInterruptedRun = 75;  // of `train --continue`: not done, which is no failure here

// A free port of this machine, held until rank 0 has it, so that no other run takes it meanwhile.
class HeldPort {
 public:
  HeldPort() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (fd_ < 0 || ::bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(fd_, SOMAXCONN) != 0 ||
        ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw_user_error("--nproc: there is no free port on 127.0.0.1 (", std::strerror(errno), ")");
    port_ = ntohs(address.sin_port);
  }
  ~HeldPort() { let_go(); }
  HeldPort(const HeldPort&) = delete;
  HeldPort& operator=(const HeldPort&) = delete;

  int port() const { return port_; }
  int fd() const { return fd_; }  // listens
  void let_go() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_, port_ = 0;
};

// A process and what it says.
struct Child {
  int rank = 0;
  pid_t pid = -1;
  int errors = -1;   // its stderr; -1: ours
  std::string rest;  // of a line
  bool is_running = false;
  int status = 0;
};

class Launch {
 public:
  explicit Launch(const LaunchOptions& options) : options_(options) {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int each : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&signals, each);
    MOEBIUS_CHECK_EQ(::sigprocmask(SIG_BLOCK, &signals, &old_mask_), 0);
    signals_ = ::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    MOEBIUS_CHECK_GE(signals_, 0, std::strerror(errno));
  }
  ~Launch() {
    for (Child& child : children_) {
      if (child.is_running) ::kill(child.pid, SIGKILL);
      if (child.is_running) ::waitpid(child.pid, nullptr, 0);
      if (child.errors >= 0) ::close(child.errors);
    }
    ::close(signals_);
    ::sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int run() {
    HeldPort port;
    for (int rank = 0; rank < options_.num_processes; ++rank) {
      start(rank, port);
      if (rank == 0) port.let_go();  // it ends with rank 0
    }
    while (num_running() > 0) {
      listen();
      reap();
      if (ends_at_ && steady_seconds() > *ends_at_) signal_all(SIGKILL);
    }
    for (Child& child : children_) read_errors(child);
    flush();
    return exit_code_;
  }

 private:
  void start(int rank, const HeldPort& port) {
    const int num = options_.num_processes;
    std::vector<std::string> variables{concat("RANK=", rank),
                                       concat("WORLD_SIZE=", num),
                                       concat("LOCAL_RANK=", rank),
                                       concat("LOCAL_WORLD_SIZE=", num),
                                       "MASTER_ADDR=127.0.0.1",
                                       concat(parallel::kLaunchedVariable, "=1"),
                                       concat("MASTER_PORT=", port.port())};
    if (rank == 0) variables.push_back(concat(parallel::kListenVariable, "=", port.fd()));
    if (std::getenv("OMP_NUM_THREADS") == nullptr)
      variables.push_back(concat("OMP_NUM_THREADS=", options_.threads_per_process));
    std::vector<char*> environment;
    for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
    // The first of two values counts for getenv, so ours go in front.
    for (std::string& each : variables) environment.insert(environment.begin(), each.data());
    environment.push_back(nullptr);
    std::vector<std::string> words{"moebius"};
    words.insert(words.end(), options_.arguments.begin(), options_.arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    int pipe_fds[2] = {-1, -1};
    if (rank > 0 && ::pipe2(pipe_fds, O_CLOEXEC) != 0)
      throw_user_error("--nproc ", num, ": no pipe for rank ", rank, " (", std::strerror(errno), ")");
    const pid_t parent = ::getpid(), pid = ::fork();
    if (pid < 0)
      throw_user_error("--nproc ", num, ": rank ", rank, " cannot be started (", std::strerror(errno), ")");
    if (pid == 0) {
      // A group of its own: Ctrl-C reaches this process, which hands it on once.
      ::setpgid(0, 0);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(1);
      if (rank > 0) {
        const int nowhere = ::open("/dev/null", O_WRONLY);
        ::dup2(nowhere, STDOUT_FILENO);
        ::dup2(pipe_fds[1], STDERR_FILENO);
      }
      if (rank == 0) ::fcntl(port.fd(), F_SETFD, 0);
      ::sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
      ::execve("/proc/self/exe", argv.data(), environment.data());
      ::_exit(127);
    }
    if (pipe_fds[1] >= 0) ::close(pipe_fds[1]);
    if (pipe_fds[0] >= 0) ::fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
    Child child;
    child.rank = rank;
    child.pid = pid;
    child.errors = pipe_fds[0];
    child.is_running = true;
    children_.push_back(std::move(child));
  }

  int num_running() const {
    return static_cast<int>(std::count_if(children_.begin(), children_.end(),
                                          [](const Child& child) { return child.is_running; }));
  }
  void signal_all(int signal) {
    for (const Child& child : children_)
      if (child.is_running) ::kill(child.pid, signal);
  }

  // Waits for something to happen, at most half a second.
  void listen() {
    std::vector<pollfd> fds{{signals_, POLLIN, 0}};
    for (const Child& child : children_)
      if (child.errors >= 0) fds.push_back({child.errors, POLLIN, 0});
    ::poll(fds.data(), fds.size(), 500);
    signalfd_siginfo info{};
    while (::read(signals_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
      if (info.ssi_signo != SIGCHLD) signal_all(static_cast<int>(info.ssi_signo));
    for (Child& child : children_) read_errors(child);
  }

  void read_errors(Child& child) {
    char buffer[4096];
    while (child.errors >= 0) {
      const ssize_t count = ::read(child.errors, buffer, sizeof buffer);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return;  // nothing more for now
      if (count == 0) {
        ::close(child.errors);
        child.errors = -1;
        return;
      }
      child.rest.append(buffer, static_cast<size_t>(count));
      for (size_t end = child.rest.find('\n'); end != std::string::npos; end = child.rest.find('\n')) {
        hear(child, child.rest.substr(0, end));
        child.rest.erase(0, end + 1);
      }
    }
  }

  // A line of a rank that is not the first. Errors wait until it is clear who failed first.
  void hear(const Child& child, const std::string& line) {
    if (line.empty() || line.starts_with("stopping after this step")) return;
    if (line.starts_with("error: ")) {
      errors_.push_back({child.rank, line});
    } else if (!ends_at_ && said_.insert(line).second) {
      log_line(LogLevel::kInfo, concat("rank ", child.rank, ": ", line));
    }
  }

  void reap() {
    for (Child& child : children_) {
      if (!child.is_running || ::waitpid(child.pid, &child.status, WNOHANG) != child.pid) continue;
      child.is_running = false;
      const int code = WIFSIGNALED(child.status) ? 128 + WTERMSIG(child.status) : WEXITSTATUS(child.status);
      if (code == 0 || failed_) continue;
      // One that was left alone is not the one that failed, though it may be gone first.
      const bool is_left_alone = code == parallel::kExitLeftAlone;
      if (!is_left_alone || exit_code_ == 0) exit_code_ = is_left_alone ? kExitFailure : code;
      if (code == kExitInterruptedRun) continue;
      if (!ends_at_) ends_at_ = steady_seconds() + kGraceSeconds;
      if (!is_left_alone) failed_ = child.rank;
    }
  }

  // What is said at the end: a wrong input that the first rank has named as well is not said again.
  void flush() const {
    if (!failed_) return;
    const Child& failed = children_[static_cast<size_t>(*failed_)];
    const Child& first = children_.front();
    const auto is_user_error = [](const Child& child) {
      return WIFEXITED(child.status) && WEXITSTATUS(child.status) == kExitUserError;
    };
    if (is_user_error(failed) && is_user_error(first)) return;
    for (const auto& [rank, line] : errors_)
      if (rank == *failed_) log_error("rank ", rank, ": ", line.substr(line.find(' ') + 1));
    if (is_user_error(failed)) return;
    const std::string how = WIFSIGNALED(failed.status)
                                ? concat("was killed by signal ", WTERMSIG(failed.status), " (",
                                         ::strsignal(WTERMSIG(failed.status)), ")")
                                : concat("ended with code ", WEXITSTATUS(failed.status));
    log_error("rank ", failed.rank, " of ", options_.num_processes, " (process ", failed.pid, ") ", how,
              ", and all ranks have ended; the same command with --resume goes on from the last checkpoint");
  }

  const LaunchOptions& options_;
  sigset_t old_mask_{};
  int signals_ = -1;
  std::vector<Child> children_;
  std::vector<std::pair<int, std::string>> errors_;
  std::set<std::string> said_;
  std::optional<double> ends_at_;  // when those that still run are killed
  std::optional<int> failed_;      // the first rank that ended by itself
  int exit_code_ = 0;
};

}  // namespace

int launch(const LaunchOptions& options) {
  MOEBIUS_CHECK_GE(options.num_processes, 1);
  return Launch(options).run();
}

std::vector<std::string> arguments_without_nproc() {
  const std::string line = read_file("/proc/self/cmdline");
  std::vector<std::string> words;
  for (size_t begin = 0; begin < line.size();) {
    const size_t end = line.find('\0', begin);
    words.push_back(line.substr(begin, end - begin));
    begin = end == std::string::npos ? line.size() : end + 1;
  }
  std::vector<std::string> arguments;
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "--nproc") {
      ++i;
    } else if (!words[i].starts_with("--nproc=")) {
      arguments.push_back(words[i]);
    }
  }
  return arguments;
}

}  // namespace moebius::cli
