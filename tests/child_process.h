// The program as a child process, for tests of the program as a whole.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace moebius {

struct Finished {
  int code = 0;        // exit code, or 128 + signal
  std::string output;  // standard output
  std::string errors;  // standard error
};

class ChildProcess {
 public:
  // Starts the program with these arguments. A child that lives longer than `limit_seconds` is killed by the
  // alarm that it starts with, so that no test hangs.
  // `variables`: "NAME=value", added to the environment.
  explicit ChildProcess(const std::vector<std::string>& arguments, unsigned limit_seconds = 120,
                        const std::vector<std::string>& variables = {});
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  void signal(int number) const;
  pid_t pid() const { return pid_; }
  Finished wait();

 private:
  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;  // unnamed files that hold what the child writes
};

// Its path; MOEBIUS_PROGRAM_UNDER_TEST names another.
std::string program_under_test();

Finished run_program(const std::vector<std::string>& arguments);

}  // namespace moebius
