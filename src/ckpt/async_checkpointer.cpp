#include "ckpt/async_checkpointer.h"

#include <exception>
#include <utility>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/log.h"
#include "ckpt/folder.h"
#include "ckpt/snapshot.h"

namespace moebius::ckpt {

AsyncCheckpointer::AsyncCheckpointer(const RunLock& lock, Options options)
    : AsyncCheckpointer(lock.run_dir(), std::move(options)) {
  remove_leftovers(lock);
}

AsyncCheckpointer::AsyncCheckpointer(std::filesystem::path run_dir, Options options)
    : run_dir_(std::move(run_dir)), options_(std::move(options)) {
  if (options_.background && options_.writers.count == 1) snapshot_ = std::make_unique<Snapshot>();
}

AsyncCheckpointer::~AsyncCheckpointer() {
  gives_up_ = std::uncaught_exceptions() > 0;
  const Result<void> result = finish();
  if (result.ok()) return;
  // What ends the run is the error, and will be said.
  gives_up_ ? log_warn(result.error().message) : log_error(result.error().message);
}

void AsyncCheckpointer::write(const CheckpointMeta& meta, std::span<const PendingGroup> groups) noexcept {
  try {
    if (options_.writers.count == 1) {
      write_checkpoint(run_dir_, meta, groups, options_.save);
    } else {
      Writers writers = options_.writers;
      writers.gives_up = &gives_up_;
      writers.attempt += concat("-", num_saves_);
      write_checkpoint(run_dir_, meta, groups, options_.save, writers);
    }
    last_step_ = meta.step;
  } catch (const UserError& error) {
    error_ = make_error(ErrorKind::kOther, error.what());
  } catch (const std::exception& error) {
    error_ =
        make_error(ErrorKind::kOther, "checkpoint of step ", meta.step, " was not saved: ", error.what());
  }
}

Result<void> AsyncCheckpointer::save(const CheckpointMeta& meta, std::span<const TensorGroup> groups) {
  const double begin = steady_seconds();
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
    start(meta, snapshot_->groups());
  } else {
    try {
      save_checkpoint(run_dir_, meta, groups, options_.save);
      last_step_ = meta.step;
    } catch (const UserError& error) {
      error_ = make_error(ErrorKind::kOther, error.what());
    }
    if (!previous) previous = std::exchange(error_, std::nullopt);
  }
  stall_seconds_ = steady_seconds() - begin;
  if (previous) return *std::move(previous);
  return {};
}

Result<void> AsyncCheckpointer::save(const CheckpointMeta& meta, const Capture& capture) {
  const double begin = steady_seconds();
  wait();
  std::optional<Error> previous = std::exchange(error_, std::nullopt);
  const std::span<const PendingGroup> groups = capture();
  if (options_.background) {
    start(meta, groups);
  } else {
    ++num_saves_;
    write(meta, groups);
    if (!previous) previous = std::exchange(error_, std::nullopt);
  }
  stall_seconds_ = steady_seconds() - begin;
  if (previous) return *std::move(previous);
  return {};
}

void AsyncCheckpointer::start(const CheckpointMeta& meta, std::span<const PendingGroup> groups) {
  ++num_saves_;
  busy_ = true;
  writer_ = std::thread([this, meta, groups] {
    write(meta, groups);
    busy_ = false;
  });
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
