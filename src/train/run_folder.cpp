#include "train/run_folder.h"

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "ckpt/folder.h"
#include "config/dump.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;

bool is_empty_or_missing(const fs::path& folder) {
  return !fs::exists(folder) || (fs::is_directory(folder) && fs::is_empty(folder));
}

// A run that was started: its config is written before anything else.
bool is_run(const fs::path& folder) {
  return fs::exists(folder / "config.toml") || fs::exists(folder / "run.lock");
}

bool may_change(const std::string& path) {
  for (const char* prefix :
       {"train.steps", "train.log_every", "train.eval_", "train.sample_", "train.trace_", "train.max_skipped",
        "train.recompute", "train.cuda_graph", "train.product_table", "memory.", "checkpoint.",
        "data.prefetch", "data.cache_dir", "energy.", "quant.calibration_batches"})
    if (path.rfind(prefix, 0) == 0) return true;
  return false;
}

bool must_be_equal(const std::string& path) {
  if (may_change(path)) return false;
  return path.rfind("model.", 0) == 0 || path.rfind("quant.", 0) == 0 || path == "train.precision" ||
         path == "precision.experts" || path == "optimizer.name" || path == "optimizer.master_weights" ||
         path == "optimizer.state_dtype" || path == "data.tokenizer";
}

}  // namespace

void check_run_folder(const fs::path& folder, RunMode mode) {
  if (fs::exists(folder) && !fs::is_directory(folder))
    throw_user_error("the run folder ", folder.string(), " is a file; choose another with --run");
  const bool has_checkpoint = fs::exists(folder) && !ckpt::list_steps(folder).empty();
  if (mode == RunMode::resume) {
    if (!has_checkpoint)
      throw_user_error("--resume: ", folder.string(),
                       " has no checkpoint to go on from; leave --resume out to start the run");
    return;
  }
  if (is_empty_or_missing(folder)) return;
  if (!is_run(folder))
    throw_user_error("the run folder ", folder.string(),
                     " exists and is not a run (no config.toml in it); choose another with --run");
  if (mode == RunMode::fresh)
    throw_user_error("the run folder ", folder.string(), " exists already",
                     has_checkpoint ? "; use --resume to go on, " : "; use ",
                     "--overwrite to start anew, or another folder with --run");
}

RunMode mode_to_go_on(const fs::path& folder) {
  if (!fs::is_directory(folder) || is_empty_or_missing(folder)) return RunMode::fresh;
  if (!ckpt::list_steps(folder).empty()) return RunMode::resume;
  return is_run(folder) ? RunMode::overwrite : RunMode::fresh;
}

ckpt::RunLock open_run_folder(const fs::path& folder, RunMode mode) {
  make_folders(folder);
  ckpt::RunLock lock(folder);
  if (mode == RunMode::overwrite)
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
      if (entry.path().filename() != "run.lock") remove_tree(entry.path());
  return lock;
}

void check_resumable(const config::RunConfig& saved, const config::RunConfig& now, const fs::path& folder) {
  std::vector<config::Difference> refused, warned;
  for (const config::Difference& difference : config::diff(saved, now)) {
    if (must_be_equal(difference.path)) {
      refused.push_back(difference);
    } else if (!may_change(difference.path)) {
      warned.push_back(difference);
    }
  }
  if (!refused.empty())
    throw_user_error("--resume: ", folder.string(), " was trained with another model or state:\n",
                     config::describe_differences(refused),
                     "\nuse the saved values, or start another run with --run");
  if (!warned.empty())
    log_warn("resuming with other settings than before; the run will not be what a straight one is:\n",
             config::describe_differences(warned));
}

}  // namespace moebius::train
