#include "energy/powerd/guard.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "energy/clock_control.h"
#include "energy/nvml.h"

namespace moebius::energy::powerd {
namespace {

std::atomic<pid_t> worker = 0;

void pass_on(int signal_number) {
  if (const pid_t pid = worker.load(); pid > 0) kill(pid, signal_number);
}

// The device of a UUID, by looking at all.
std::optional<NvmlDevice> device_of(const Nvml& nvml, const std::string& uuid) {
  const int count = nvml.num_devices().value_or(0);
  for (int i = 0; i < count; ++i) {
    auto device = nvml.device(i);
    if (device && device->uuid().value_or("") == uuid) return std::move(device).value();
  }
  return std::nullopt;
}

}  // namespace

void write_locks(const std::filesystem::path& file, const std::vector<std::string>& uuids) {
  if (uuids.empty()) {
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
    return;
  }
  std::string text;
  for (const std::string& uuid : uuids) text += uuid + "\n";
  write_file_atomic(file, text);
}

int reset_listed(const std::filesystem::path& file, const std::string& nvml_library) {
  if (!std::filesystem::exists(file)) return 0;
  const auto nvml = Nvml::open(nvml_library);
  if (!nvml) {
    log_error("clocks may still be locked (", file.string(), "): ", nvml.error().message);
    return 0;
  }
  std::istringstream lines(read_file(file));
  std::vector<std::string> left;
  int count = 0;
  for (std::string uuid; std::getline(lines, uuid);) {
    const auto device = device_of(*nvml, uuid);
    const Result<void> done = device ? ClockControl(*device).reset()
                                     : Result<void>(make_error(ErrorKind::kNotFound, "it is not here"));
    if (done) {
      ++count;
    } else {
      log_error("the clocks of ", uuid, " could not be reset: ", done.error().message);
      left.push_back(uuid);
    }
  }
  write_locks(file, left);
  return count;
}

int run_guarded(const std::filesystem::path& locks, const std::string& nvml_library,
                const std::function<int()>& serve) {
  const pid_t guard = getpid();
  const pid_t pid = fork();
  MOEBIUS_CHECK(pid >= 0, "cannot start a second process");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != guard) _exit(1);  // the guard went before that held
    int code = 1;
    try {
      code = serve();
    } catch (const UserError& error) {
      log_error(error.what());
      code = kExitUserError;
    } catch (const std::exception& error) {
      log_error(error.what());
    }
    _exit(code);
  }
  worker = pid;
  struct sigaction action {};
  action.sa_handler = pass_on;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  worker = 0;
  if (const int count = reset_listed(locks, nvml_library); count > 0)
    log_warn("the serving process is gone; the clocks of ", count, count == 1 ? " GPU were" : " GPUs were",
             " reset");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace moebius::energy::powerd
