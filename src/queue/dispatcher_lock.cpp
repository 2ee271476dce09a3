#include "queue/dispatcher_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace moebius::queue {

DispatcherLock::DispatcherLock(const std::filesystem::path& folder) {
  const std::string file = (folder / "dispatcher.lock").string();
  fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) throw_user_error("cannot write ", file, ": ", std::strerror(errno));
  // A job's supervisor that was forked just before its dispatcher was killed holds the lock until it has
  // closed what it does not need.
  bool locked = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
  for (int i = 0; i < 40 && !locked; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
    locked = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
  }
  if (!locked) {
    ::close(fd_);
    throw_user_error("the queue in ", folder.string(), " is already run by process ", holder(folder),
                     "; stop that one first, or name another queue with --queue");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd_, 0) != 0 || ::write(fd_, pid.data(), pid.size()) < 0)
    log_warn("cannot write to ", file, ": ", std::strerror(errno));
}

DispatcherLock::~DispatcherLock() {
  ::close(fd_);
}

int DispatcherLock::holder(const std::filesystem::path& folder) {
  const std::string file = (folder / "dispatcher.lock").string();
  const int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  const bool is_free = ::flock(fd, LOCK_SH | LOCK_NB) == 0;
  char text[32] = {};
  const ssize_t length = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  return is_free || length <= 0 ? 0 : std::atoi(text);
}

}  // namespace moebius::queue
