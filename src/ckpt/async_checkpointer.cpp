#include "ckpt/async_checkpointer.h"

#include <chrono>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "ckpt/folder.h"
#include "ckpt/snapshot.h"

namespace moebius::ckpt {

AsyncCheckpointer::AsyncCheckpointer(const RunLock& lock, Options options) : lock_(lock), options_(options) {
  if (options_.background) snapshot_ = std::make_unique<Snapshot>();
  remove_leftovers(lock_);
}

AsyncCheckpointer::~AsyncCheckpointer() {
  if (const Result<void> result = finish(); !result.ok()) log_error(result.error().message);
}

void AsyncCheckpointer::write(const CheckpointMeta& meta, std::span<const PendingGroup> groups) noexcept {
  try {
    write_checkpoint(lock_.run_dir(), meta, groups, options_.save);
    last_step_ = meta.step;
  } catch (const UserError& error) {
    error_ = make_error(ErrorKind::kOther, error.what());
  } catch (const std::exception& error) {
    error_ =
        make_error(ErrorKind::kOther, "checkpoint of step ", meta.step, " was not saved: ", error.what());
  }
}

Result<void> AsyncCheckpointer::save(const CheckpointMeta& meta, std::span<const TensorGroup> groups) {
  const auto start = std::chrono::steady_clock::now();
  wait();
  std::optional<Error> previous = std::exchange(error_, std::nullopt);
  bool captured = false;
  if (snapshot_) {
    try {
      snapshot_->capture(groups);
      captured = true;
    } catch (const std::exception& error) {
      snapshot_ = std::make_unique<Snapshot>();  // gives its memory back
      log_warn("no memory for a background copy of the checkpoint; writing it now (", error.what(), ")");
    }
  }
  if (captured) {
    busy_ = true;
    writer_ = std::thread([this, meta] {
      write(meta, snapshot_->groups());
      busy_ = false;
    });
  } else {
    try {
      save_checkpoint(lock_.run_dir(), meta, groups, options_.save);
      last_step_ = meta.step;
    } catch (const UserError& error) {
      error_ = make_error(ErrorKind::kOther, error.what());
    }
    if (!previous) previous = std::exchange(error_, std::nullopt);
  }
  stall_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (previous) return *std::move(previous);
  return {};
}

Result<void> AsyncCheckpointer::finish() {
  wait();
  if (std::optional<Error> error = std::exchange(error_, std::nullopt)) return *std::move(error);
  return {};
}

void AsyncCheckpointer::wait() {
  if (writer_.joinable()) writer_.join();
}

std::optional<int64_t> AsyncCheckpointer::last_step() const {
  const int64_t step = last_step_.load();
  return step < 0 ? std::nullopt : std::optional(step);
}

}  // namespace moebius::ckpt
