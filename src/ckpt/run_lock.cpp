#include "ckpt/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace moebius::ckpt {
namespace {

// "process 1234 on host": what the holder wrote; "another process" when it has not come to that yet.
std::string holder(int descriptor) {
  std::array<char, 256> text{};
  const ssize_t count = ::pread(descriptor, text.data(), text.size() - 1, 0);
  std::string line(text.data(), count > 0 ? static_cast<size_t>(count) : 0);
  line.resize(std::min(line.find('\n'), line.size()));
  return line.empty() ? "another process" : line;
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& run_dir) : run_dir_(run_dir) {
  make_folders(run_dir);
  const std::filesystem::path path = run_dir / "run.lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw_user_error("cannot lock the run folder '", run_dir.string(), "': ", std::strerror(errno), " (",
                     path.string(), "); choose a folder that you may write to with --run");
  }
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) {
      log_warn("cannot lock '", path.string(), "': ", std::strerror(errno),
               "; make sure that no other process trains in this folder");
      return;
    }
    const std::string who = holder(descriptor_);
    ::close(std::exchange(descriptor_, -1));
    throw_user_error("run folder '", run_dir.string(), "' is in use by ", who,
                     "; wait for it to end, stop it, or choose another folder with --run");
  }
  std::array<char, 128> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::string line = concat("process ", ::getpid(), " on ", host.data(), "\n");
  // The text only serves the message above; a full disk must not keep a run from starting.
  if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, line.data(), line.size(), 0) < 0) {
    log_warn("cannot write '", path.string(), "': ", std::strerror(errno));
  }
}

RunLock::~RunLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RunLock::RunLock(RunLock&& other) noexcept
    : run_dir_(std::move(other.run_dir_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
  std::swap(run_dir_, other.run_dir_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

}  // namespace moebius::ckpt
