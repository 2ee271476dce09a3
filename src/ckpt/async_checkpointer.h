// Saves checkpoints while training goes on: a copy of the tensors is taken at the step boundary (Snapshot), a
// thread writes it. One write is in flight at a time; a second save waits for the first. Costs host memory as
// large as the saved tensors, kept for the next save; when that memory cannot be had, the save is written at
// once instead.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>

#include "base/result.h"
#include "ckpt/checkpoint.h"
#include "ckpt/run_lock.h"

namespace moebius::ckpt {

class Snapshot;

// Members are called from one thread.
class AsyncCheckpointer {
 public:
  struct Options {
    SaveOptions save = {};
    bool background = true;  // false: save() writes before it returns, and no copy is held
    Writers writers = {};    // more than one: `attempt` becomes part of a name for each save
  };

  // Removes what killed writers left in the run folder. The lock must outlive this object.
  AsyncCheckpointer(const RunLock& lock, Options options);
  // For a process that writes along with the one that has the lock, and begins after it.
  AsyncCheckpointer(std::filesystem::path run_dir, Options options);
  // Waits for the write in flight; logs a failure that nobody has taken. When an error ends the scope, other
  // processes may be gone, and are not waited for.
  ~AsyncCheckpointer();

  // Waits for the write in flight, copies the tensors and starts to write them. The result is that of the
  // *previous* save when it was written in the background, and of this one when it was not: a failure (disk
  // full, …) says what was needed and which checkpoint survives, and is reported once. The new save takes
  // place in any case, so the caller may warn and train on, or stop.
  Result<void> save(const CheckpointMeta& meta, std::span<const TensorGroup> groups);

  // The same for several processes, each of which captures its part: `capture` copies what is written at this
  // moment, and the copy stays valid until the next one. All processes call it for the same steps.
  using Capture = std::function<std::span<const PendingGroup>()>;
  Result<void> save(const CheckpointMeta& meta, const Capture& capture);

  // Waits until nothing is in flight; the result of the last save unless it has been taken.
  Result<void> finish();

  bool busy() const { return busy_.load(); }
  // Step and folder of the newest checkpoint that this object has completed.
  std::optional<int64_t> last_step() const;
  // Seconds that the last save() kept its caller waiting, and that its write took in all.
  double stall_seconds() const { return stall_seconds_; }

 private:
  void write(const CheckpointMeta& meta, std::span<const PendingGroup> groups) noexcept;
  void wait();
  Result<void> take_result();

  void start(const CheckpointMeta& meta, std::span<const PendingGroup> groups);

  std::filesystem::path run_dir_;
  Options options_;
  int64_t num_saves_ = 0;
  std::atomic<bool> gives_up_{false};
  std::unique_ptr<Snapshot> snapshot_;
  std::thread writer_;
  std::atomic<bool> busy_{false};
  std::optional<Error> error_;  // written by the writer, read after join
  std::atomic<int64_t> last_step_{-1};
  double stall_seconds_ = 0;
};

}  // namespace moebius::ckpt
