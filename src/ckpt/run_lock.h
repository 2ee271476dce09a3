// One writer per run folder. A process that trains holds the lock for as long as it may write; readers (eval,
// generate) need none, because nothing that is complete is ever changed in place.
#pragma once

#include <filesystem>

namespace moebius::ckpt {

class RunLock {
 public:
  // Takes `run.lock` in run_dir (made if missing) with flock and writes the process number and host name into
  // it. UserError naming the holder when another process has it. The system releases it when the process
  // ends, however it ends; the file stays. On a file system without flock a warning is logged and nothing is
  // locked.
  explicit RunLock(const std::filesystem::path& run_dir);
  ~RunLock();
  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&& other) noexcept;

  const std::filesystem::path& run_dir() const { return run_dir_; }

 private:
  std::filesystem::path run_dir_;
  int descriptor_ = -1;
};

}  // namespace moebius::ckpt
