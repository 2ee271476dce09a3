// One dispatcher at a time.
#pragma once

#include <filesystem>

namespace moebius::queue {

// Held by the one dispatcher of a queue's folder; UserError naming its process when another holds it.
class DispatcherLock {
 public:
  explicit DispatcherLock(const std::filesystem::path& folder);
  ~DispatcherLock();
  DispatcherLock(const DispatcherLock&) = delete;
  DispatcherLock& operator=(const DispatcherLock&) = delete;
  // Process of the dispatcher that serves the folder; 0 when none does.
  static int holder(const std::filesystem::path& folder);

 private:
  int fd_;
};

}  // namespace moebius::queue
