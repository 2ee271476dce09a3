#include "queue/slurm_engine.h"

#include <fstream>
#include <optional>
#include <sstream>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"

namespace moebius::queue {
namespace {

namespace fs = std::filesystem;

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// The batch script. The command is a child, so that the signal to stop (SlurmClient::ask) can be handed on to
// it as SIGTERM, once, and its exit code be written down. stop.ATTEMPT says that the signal came: one that is
// sent before the script runs is lost. exit.ATTEMPT appears whole or not at all.
std::string script_of(const Launch& launch, const fs::path& folder) {
  std::string command;
  for (const std::string& each : with_workers(launch.command, launch.workers)) command += quoted(each) + " ";
  std::ostringstream out;
  out << "#!/bin/bash\n"
      << "export MOEBIUS_QUEUE_JOB=" << launch.job << " MOEBIUS_QUEUE_ATTEMPT=" << launch.attempt
      << " MOEBIUS_QUEUE_WORKERS=" << launch.workers << "\n"
      << "cd " << quoted(launch.folder) << " || exit 127\n"
      << "asked= child=\n"
      << "ask() { if [ -z \"$asked\" ]; then asked=1; : > "
      << quoted((folder / ("stop." + std::to_string(launch.attempt))).string())
      << "; [ -z \"$child\" ] || kill -TERM $child; fi; }\n"
      << "trap ask TERM URG\n"
      << command << "&\n"
      << "child=$!\n"
      << "[ -z \"$asked\" ] || kill -TERM $child\n"
      << "wait $child; code=$?\n"
      << "while kill -0 $child 2>/dev/null; do wait $child; code=$?; done\n"
      << "echo $code > " << quoted((folder / ".new").string()) << " && mv "
      << quoted((folder / ".new").string()) << " "
      << quoted((folder / ("exit." + std::to_string(launch.attempt))).string()) << "\n"
      << "exit $code\n";
  return out.str();
}

bool is_pending(const std::string& state) {
  return state == "PENDING" || state == "CONFIGURING" || state == "SUSPENDED" || state == "REQUEUED" ||
         state == "REQUEUE_HOLD" || state == "SPECIAL_EXIT";
}

bool is_running(const std::string& state) {
  return state == "RUNNING" || state == "COMPLETING" || state == "STAGE_OUT" || state == "SIGNALING" ||
         state == "RESIZING" || state == "STOPPED";
}

std::optional<int> exit_code_in(const fs::path& file) {
  std::ifstream in(file);
  int code = 0;
  if (!(in >> code)) return std::nullopt;
  return code;
}

}  // namespace

SlurmEngine::SlurmEngine(fs::path folder, SlurmOptions options, std::unique_ptr<SlurmClient> slurm)
    : folder_(std::move(folder)), options_(std::move(options)), slurm_(std::move(slurm)) {}

std::string SlurmEngine::name_of(int64_t job, int64_t attempt) const {
  return concat("moebius-", options_.queue_name, "-", job, "-", attempt);
}

// This queue's attempts, from one question for all of them.
Result<void> SlurmEngine::list(bool afresh) {
  const double now_s = steady_seconds();
  if (!afresh && now_s - listed_at_s_ < options_.status_every_s) return {};
  const Result<std::vector<SlurmJob>> jobs = slurm_->list();
  if (!jobs) return jobs.error();
  listed_.clear();
  listed_at_s_ = now_s;
  const std::string prefix = "moebius-" + options_.queue_name + "-";
  for (const SlurmJob& job : *jobs) {
    if (job.name.starts_with(prefix)) listed_[job.name] = job;
  }
  return {};
}

Result<void> SlurmEngine::start(const Launch& launch) {
  const fs::path folder = folder_of(launch.job);
  const std::string name = name_of(launch.job, launch.attempt);
  if (exit_code_in(folder / ("exit." + std::to_string(launch.attempt)))) return {};
  if (const auto listed = list(true); !listed) return listed.error();
  if (listed_.contains(name)) return {};  // it was submitted before a kill
  const std::string others = concat("moebius-", options_.queue_name, "-", launch.job, "-");
  for (const auto& [other, entry] : listed_) {
    if (other.starts_with(others) && (is_pending(entry.state) || is_running(entry.state)))
      return make_error(ErrorKind::kUnavailable, "an earlier start, Slurm job ", entry.id, ", still lives");
  }
  const std::string text = script_of(launch, folder);
  const fs::path script = folder / ("script." + std::to_string(launch.attempt));
  try {
    make_folders(folder);
    write_file_atomic(script, text);
  } catch (const UserError& error) {
    return make_error(ErrorKind::kUnavailable, error.what());
  }
  const Result<std::string> id = slurm_->submit({.name = name,
                                                 .script = text,
                                                 .script_file = script.string(),
                                                 .log = (folder / "log").string(),
                                                 .folder = launch.folder,
                                                 .places = launch.width * launch.workers,
                                                 .per_worker = options_.per_worker});
  if (!id) return id.error();
  listed_[name] = {*id, name, "PENDING"};
  return {};
}

Result<RunStatus> SlurmEngine::status(int64_t job, int64_t attempt) {
  const fs::path exit_file = folder_of(job) / ("exit." + std::to_string(attempt));
  const auto exited = [&](int code) { return RunStatus{RunStatus::Kind::exited, code}; };
  if (const auto code = exit_code_in(exit_file)) return exited(*code);
  if (const auto listed = list(false); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found != listed_.end()) {
    if (is_pending(found->second.state)) return RunStatus{RunStatus::Kind::pending};
    if (is_running(found->second.state)) return RunStatus{RunStatus::Kind::running};
  }
  // It has ended, or Slurm has forgotten it; on a shared file system its exit code may come a moment later
  // than Slurm's word, and is looked for once more.
  if (const auto code = exit_code_in(exit_file)) return exited(*code);
  return RunStatus{RunStatus::Kind::none};
}

Result<void> SlurmEngine::stop(int64_t job, int64_t attempt, bool now) {
  // Until the batch script has heard it (script_of).
  const fs::path asked = folder_of(job) / ("stop." + std::to_string(attempt));
  if (!now && fs::exists(asked)) return {};
  if (const auto listed = list(true); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found == listed_.end()) return {};
  const auto& [id, name, state] = found->second;
  if (now) return slurm_->cancel(id, /*if_pending=*/false);
  // One that has begun meanwhile is asked the next time.
  if (is_pending(state)) return slurm_->cancel(id, /*if_pending=*/true);
  return is_running(state) ? slurm_->ask(id) : Result<void>();
}

Result<void> SlurmEngine::hold(int64_t job, int64_t attempt, bool held) {
  if (const auto listed = list(true); !listed) return listed.error();
  const auto found = listed_.find(name_of(job, attempt));
  if (found == listed_.end()) return make_error(ErrorKind::kNotFound, "Slurm has no ", name_of(job, attempt));
  return slurm_->hold(found->second.id, held);
}

}  // namespace moebius::queue
