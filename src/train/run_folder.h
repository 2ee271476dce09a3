// The folder of a run: who may write it, what is in it before training begins.
//   config.toml  metrics.jsonl  summary.json  trace.json  tokenizer.*  run.lock  checkpoints/
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "ckpt/run_lock.h"
#include "config/train_config.h"

namespace moebius::train {

enum class RunMode : uint8_t {
  fresh,     // the folder must not hold a run
  resume,    // go on from the newest checkpoint
  overwrite  // remove the run that is there
};

// For a command that is started again until the run is done: resume where there is a checkpoint, overwrite a
// run that was stopped before its first one, fresh otherwise.
RunMode mode_to_go_on(const std::filesystem::path& folder);

// Looks, and changes nothing: UserError when `mode` does not fit what is there (a run exists, nothing to
// resume, a folder that is not a run is not overwritten).
void check_run_folder(const std::filesystem::path& folder, RunMode mode);

// Locks the folder (UserError when another process trains in it), empties it when overwriting, and makes it
// where it is missing. Call check_run_folder first.
ckpt::RunLock open_run_folder(const std::filesystem::path& folder, RunMode mode);

// UserError listing the fields that differ when a run cannot be continued with `now`: model, precision and
// optimizer state must be the same. Other differences are logged as warnings.
void check_resumable(const config::RunConfig& saved, const config::RunConfig& now,
                     const std::filesystem::path& folder);

}  // namespace moebius::train
