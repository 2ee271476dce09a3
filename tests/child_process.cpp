#include "tests/child_process.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "base/check.h"

namespace moebius {
namespace {

std::string contents(int fd) {
  std::string text(static_cast<size_t>(lseek(fd, 0, SEEK_END)), '\0');
  MOEBIUS_CHECK_EQ(pread(fd, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  return text;
}

}  // namespace

std::string program_under_test() {
  const char* named = std::getenv("MOEBIUS_PROGRAM_UNDER_TEST");
  return named != nullptr ? named : MOEBIUS_PROGRAM;
}

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, unsigned limit_seconds,
                           const std::vector<std::string>& variables)
    : out_(memfd_create("out", MFD_CLOEXEC)), err_(memfd_create("err", MFD_CLOEXEC)) {
  const std::string path = program_under_test();
  std::vector<char*> argv{const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  // The first of two values of a name counts.
  std::vector<char*> environment;
  for (const std::string& each : variables) environment.push_back(const_cast<char*>(each.c_str()));
  for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
  environment.push_back(nullptr);
  pid_ = fork();
  MOEBIUS_CHECK_GE(pid_, 0);
  if (pid_ == 0) {
    dup2(out_, STDOUT_FILENO);
    dup2(err_, STDERR_FILENO);
    alarm(limit_seconds);
    execve(path.c_str(), argv.data(), environment.data());
    _exit(127);
  }
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(out_);
  close(err_);
}

void ChildProcess::signal(int number) const {
  kill(pid_, number);
}

Finished ChildProcess::wait() {
  int status = 0;
  MOEBIUS_CHECK_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), contents(out_), contents(err_)};
}

Finished run_program(const std::vector<std::string>& arguments) {
  return ChildProcess(arguments).wait();
}

}  // namespace moebius
