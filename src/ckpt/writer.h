// Writes one checkpoint folder, without torch: tensors come as pieces of bytes. save_checkpoint and
// AsyncCheckpointer (checkpoint.h, async_checkpointer.h) stand on it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "ckpt/safetensors.h"

namespace moebius::ckpt {

// What a checkpoint says beside its tensors.
struct CheckpointMeta {
  int64_t step = 0;
  std::string config;  // effective configuration as text (TOML), stored as it is
  std::string state_json =
      "{}";  // a JSON object: tokens seen, sampler position, seed, …; stored with sorted keys
};

struct SaveOptions {
  // A shard file holds at most this many bytes of data, unless one tensor alone is larger.
  int64_t shard_bytes = int64_t{2} << 30;
  // How many of the newest checkpoints stay. The old ones go only when the one just written is complete.
  int64_t keep = 2;
};

// Several processes that see one file system write a checkpoint together: each its own shards, and the first
// the manifest, when all have finished.
struct Writers {
  int rank = 0, count = 1;
  std::string attempt = {};  // the same on all of them, and never used before in this run folder
  double timeout_s = 600;    // how long the first waits for the others
  const std::atomic<bool>* gives_up = nullptr;  // the first stops waiting when it becomes true
};

using ByteSink = std::function<void(std::span<const std::byte>)>;

struct PendingTensor {
  TensorSpec spec;
  // Hands the tensor's bytes to the sink in order, in pieces of any size. Called once.
  std::function<void(const ByteSink&)> emit;
  // Called once before emit, on another thread while the tensor before is being written, for what takes time.
  // One at a time, in the order of writing. May be empty.
  std::function<void()> prepare = {};
  int writer = 0;  // which of several processes writes it; the others know its spec only
};

struct PendingGroup {
  std::string name;  // lower-case letters, digits and '_': becomes part of file names
  std::vector<PendingTensor> tensors;
};

// Writes to RUN/checkpoints/.tmp-<step>-<pid>, makes it durable, renames it to step-<step> (replacing one of
// the same step in one move), then removes old ones. The same input gives the same bytes in every file.
// Returns the folder. UserError when it cannot be written (disk full, no permission): it says what was needed
// and which checkpoint survives; nothing is left of the attempt. One writer per run folder (RunLock).
std::filesystem::path write_checkpoint(const std::filesystem::path& run_dir, const CheckpointMeta& meta,
                                       std::span<const PendingGroup> groups, const SaveOptions& options);

// The same by several processes, which give the same meta, specs and writers. Returns on the first when the
// checkpoint is complete, on the others when their shards are on the disk. A failure of one is thrown there
// and on the first, naming the process.
std::filesystem::path write_checkpoint(const std::filesystem::path& run_dir, const CheckpointMeta& meta,
                                       std::span<const PendingGroup> groups, const SaveOptions& options,
                                       const Writers& writers);

}  // namespace moebius::ckpt
