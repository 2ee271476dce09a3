// `moebius queue add | list | show | cancel | pause | resume`: what users do with the queue's jobs.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/units.h"
#include "cli/queue_command.h"
#include "cli/queue_folder.h"
#include "queue/dispatcher_lock.h"
#include "queue/plan_text.h"
#include "queue/recover.h"
#include "queue/store.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;
using queue::State;
using queue::StoredJob;
using queue::Wanted;
using Access = queue::Database::Access;

struct AddArguments {
  std::string queue, name, duration, deadline, slack = "24h", folder, scaling, profile, now;
  std::vector<std::string> command;
  int64_t priority = 0, width = 1, times = 1;
  int pause_code = 75;
  double watts = 0;
  bool can_pause = false, no_pause = false, hold = false;
};

bool is_training(const std::vector<std::string>& command) {
  return command.size() > 1 && fs::path(command[0]).filename() == "moebius" && command[1] == "train";
}

bool has(const std::vector<std::string>& command, std::string_view argument) {
  return std::find(command.begin(), command.end(), argument) != command.end();
}

std::string scaling_text(const std::string& file, const std::string& name) {
  if (file.empty()) return {};
  const queue::ScalingProfile profile = queue::read_scaling(file, name);
  std::string speeds, powers;
  for (int n = 1; n <= profile.max_workers(); ++n) {
    const char* comma = n == 1 ? "" : ",";
    speeds += fmt::format("{}{}", comma, profile.speed(n));
    powers += fmt::format("{}{}", comma, profile.power(n));
  }
  return speeds + ";" + powers;
}

void run_add(const AddArguments& a) {
  StoredJob job;
  job.command = a.command;
  if (job.command.empty())
    throw_user_error("queue add needs a command: queue add --duration 4h -- COMMAND ...");
  job.can_pause = a.can_pause;
  job.pause_code = a.pause_code;
  if (is_training(job.command)) {
    job.can_pause = !a.no_pause;
    for (const char* mode : {"--resume", "--overwrite"}) {
      if (has(job.command, mode))
        throw_user_error("a queued `moebius train` cannot have ", mode,
                         ": it is started more than once; leave it out, the queue adds --continue");
    }
    if (!has(job.command, "--continue")) job.command.emplace_back("--continue");
  }
  job.name = a.name.empty() ? fs::path(job.command[0]).filename().string() : a.name;
  job.folder = fs::absolute(a.folder.empty() ? fs::current_path() : fs::path(a.folder)).string();
  if (!fs::is_directory(job.folder)) throw_user_error("--folder ", job.folder, " is not there");
  job.length_s = parse_duration(a.duration, "--duration");
  if (job.length_s < 1) throw_user_error("--duration is '", a.duration, "'; a job takes at least a second");
  const double now_s = a.now.empty() ? system_clock().unix_seconds() : parse_time(a.now, "--now");
  job.deadline_s = a.deadline.empty() ? now_s + job.length_s + parse_duration(a.slack, "--slack")
                                      : parse_time(a.deadline, "--deadline");
  job.priority = a.priority;
  job.width = a.width;
  job.watts = a.watts;
  job.wanted = a.hold ? Wanted::hold : Wanted::run;
  job.scaling_text = scaling_text(a.scaling, a.profile);
  job.scaling = queue::parse_scaling(job.scaling_text);

  std::vector<StoredJob> jobs(static_cast<size_t>(a.times), job);
  for (size_t i = 0; i < jobs.size(); ++i) {
    for (std::string& argument : jobs[i].command) {
      for (size_t at = 0; (at = argument.find("{index}", at)) != std::string::npos;)
        argument.replace(at, 7, std::to_string(i));
    }
  }
  queue::Store store(queue_folder(a.queue), Access::kCreate);
  store.add(jobs, now_s);
  std::cout << (jobs.size() == 1 ? fmt::format("job {}", jobs[0].id)
                                 : fmt::format("jobs {} to {}", jobs.front().id, jobs.back().id))
            << " added: to be done by " << iso_time(job.deadline_s);
  if (job.deadline_s < now_s + job.length_s / job.scaling.max_speed())
    std::cout << ", which it cannot meet (it takes " << format_duration(job.length_s)
              << "): it runs as soon as there is room";
  std::cout << "\n";
  if (queue::DispatcherLock::holder(store.folder()) == 0)
    std::cout << "nothing runs this queue now; start `moebius queue run`\n";
}

const char* shown_state(State state, Wanted wanted) {
  if (state == State::waiting && wanted == Wanted::hold) return "held";
  return queue::state_name(state);
}

// Text of the last value that was asked for: neighbours in a long list have mostly the same one, and
// formatting is what a list of a hundred thousand jobs would spend its time on.
class LastText {
 public:
  template <class Format>
  const std::string& of(double value, const Format& format) {
    if (!known_ || value != value_) text_ = format(value);
    known_ = true;
    value_ = value;
    return text_;
  }

 private:
  bool known_ = false;
  double value_ = 0;
  std::string text_;
};

// Right-aligned, or with a negative width left-aligned.
void append(std::string& out, std::string_view text, int width) {
  const size_t size = static_cast<size_t>(std::abs(width)),
               spaces = size > text.size() ? size - text.size() : 0;
  if (width > 0) out.append(spaces, ' ');
  out += text;
  if (width < 0) out.append(spaces, ' ');
}

std::string_view text_of(const fmt::format_int& number) {
  return {number.data(), number.size()};
}

void print_list(const std::string& folder, bool all, bool json) {
  queue::Store store(queue_folder(folder), Access::kRead);
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    store.list(all, [&](const queue::JobRow& row) {
      list.push_back({{"id", row.id},
                      {"state", shown_state(row.state, row.wanted)},
                      {"priority", row.priority},
                      {"workers", row.workers},
                      {"length_s", row.length_s},
                      {"work_done_s", row.work_done_s},
                      {"deadline_unix_s", row.deadline_s},
                      {"added_unix_s", row.added_s},
                      {"name", row.name},
                      {"note", row.note}});
    });
    std::cout << list.dump(1) << "\n";
    return;
  }
  std::string out = fmt::format("{:>7}  {:<9} {:>4} {:>7} {:>5}  {:<17}  {}\n", "job", "state", "prio",
                                "length", "done", "deadline", "name");
  const auto flush = [&out] {
    std::cout.write(out.data(), static_cast<std::streamsize>(out.size()));
    out.clear();
  };
  LastText length, done, deadline;
  store.list(all, [&](const queue::JobRow& row) {
    const double share = row.state == State::done ? 1 : std::min(row.work_done_s / row.length_s, 0.99);
    append(out, text_of(fmt::format_int(row.id)), 7);
    out += "  ";
    append(out, shown_state(row.state, row.wanted), -9);
    append(out, text_of(fmt::format_int(row.priority)), 5);
    append(out, length.of(row.length_s, [](double s) { return fmt::format("{:.1f}h", s / 3600); }), 8);
    append(out, done.of(share, [](double part) { return fmt::format("{:.0f}%", 100 * part); }), 6);
    out += "  ";
    append(out,
           deadline.of(row.deadline_s - std::fmod(row.deadline_s, 60.0),
                       [](double s) { return iso_time(s).substr(0, 16) + "Z"; }),
           -17);
    out += "  ";
    out += row.name;
    if (!row.note.empty()) (out += ": ") += row.note;
    out += '\n';
    if (out.size() > 60000) flush();
  });
  flush();
}

StoredJob find(queue::Store& store, int64_t id) {
  auto job = store.find(id);
  if (!job)
    throw_user_error("there is no job ", id, " in ", store.folder().string(),
                     "; `moebius queue list --all` lists them");
  return *std::move(job);
}

nlohmann::ordered_json to_json(const StoredJob& job) {
  const auto time = [](double seconds) {
    return seconds > 0 ? nlohmann::ordered_json(iso_time(seconds)) : nlohmann::ordered_json();
  };
  nlohmann::ordered_json plan = nlohmann::ordered_json::array();
  for (const queue::Piece& piece : queue::parse_plan(job.plan))
    plan.push_back({{"begin", time(piece.begin_s)}, {"end", time(piece.end_s)}, {"workers", piece.workers}});
  return {{"id", job.id},
          {"name", job.name},
          {"state", shown_state(job.state, job.wanted)},
          {"wanted", queue::wanted_name(job.wanted)},
          {"note", job.note},
          {"command", job.command},
          {"folder", job.folder},
          {"priority", job.priority},
          {"width", job.width},
          {"length_s", job.length_s},
          {"work_done_s", job.work_done_s},
          {"can_pause", job.can_pause},
          {"watts", job.watts},
          {"scaling", job.scaling_text},
          {"added", time(job.added_s)},
          {"deadline", time(job.deadline_s)},
          {"first_start", time(job.first_start_s)},
          {"finished", time(job.finished_s)},
          {"missed_deadline", job.finished_s > job.deadline_s},
          {"attempts", job.attempts},
          {"lost_attempts", job.lost_attempts},
          {"workers", job.workers},
          {"switches", job.switches},
          {"exit_code", job.exit_code},
          {"energy_kwh", job.energy_kwh},
          {"carbon_g", job.carbon_g},
          {"basis", "estimated"},
          {"plan", plan}};
}

void print_job(const std::string& folder, int64_t id, bool as_json) {
  queue::Store store(queue_folder(folder), Access::kRead);
  nlohmann::ordered_json json = to_json(find(store, id));
  json["log"] = (store.folder_of(id) / "log").string();
  auto& history = json["history"] = nlohmann::ordered_json::array();
  for (const queue::HistoryLine& line : store.history(id))
    history.push_back({{"time", iso_time(line.time_s)}, {"attempt", line.attempt}, {"what", line.what}});
  if (as_json) {
    std::cout << json.dump(2) << "\n";
    return;
  }
  for (const auto& [key, value] : json.items()) {
    if (key == "history" || key == "plan") continue;
    if (!value.is_null() && value != "")
      std::cout << fmt::format("{:<16} {}\n", key,
                               value.is_string() ? value.get<std::string>() : value.dump());
  }
  for (const auto& piece : json["plan"])
    std::cout << fmt::format("plan             {} to {}, {} workers\n", piece["begin"].get<std::string>(),
                             piece["end"].get<std::string>(), piece["workers"].get<int>());
  for (const auto& line : history)
    std::cout << fmt::format("{}  {}\n", line["time"].get<std::string>(), line["what"].get<std::string>());
}

void want(const std::string& folder, const std::vector<int64_t>& ids, Wanted wanted) {
  queue::Store store(queue_folder(folder), Access::kWrite);
  for (const int64_t id : ids) {
    const StoredJob before = find(store, id);
    if (wanted == Wanted::hold && before.state == State::running && !before.can_pause)
      throw_user_error("job ", id, " runs and cannot pause; `moebius queue cancel ", id, "` ends it");
    const StoredJob job = *store.want(id, wanted, system_clock().unix_seconds());
    std::cout << "job " << id << ": ";
    if (is_over(job.state)) {
      std::cout << queue::state_name(job.state) << "\n";
    } else if (job.wanted != wanted) {
      std::cout << "is being cancelled already\n";
    } else if (is_active(job.state) && wanted != Wanted::run) {
      std::cout << (wanted == Wanted::hold ? "asked to save and pause" : "asked to end");
      if (queue::DispatcherLock::holder(store.folder()) == 0)
        std::cout << ", as soon as `moebius queue run` runs this queue again";
      std::cout << "\n";
    } else {
      std::cout << shown_state(job.state, job.wanted) << "\n";
    }
  }
}

void recover_queue(const std::string& option) {
  const fs::path folder = queue_folder(option);
  if (const int pid = queue::DispatcherLock::holder(folder); pid != 0)
    throw_user_error("process ", pid, " runs the queue in ", folder.string(), "; stop it first");
  const queue::Recovered recovered = queue::recover_database(folder);
  std::cout << recovered.jobs << " jobs saved to " << recovered.file.string()
            << (recovered.complete ? ", all that there were" : "; others could not be read")
            << "\nTo use it: mv " << (folder / "queue.db").string() << " aside, with -wal and -shm, and "
            << recovered.file.string() << " to its name\n";
}

void add_want_command(CLI::App& parent, const char* name, const char* help, Wanted wanted) {
  CLI::App* command = parent.add_subcommand(name, help);
  auto folder = std::make_shared<std::string>();
  auto ids = std::make_shared<std::vector<int64_t>>();
  command->add_option("jobs", *ids, "Numbers of jobs")->required();
  add_queue_option(*command, *folder);
  command->callback([folder, ids, wanted] { want(*folder, *ids, wanted); });
}

void add_add_command(CLI::App& parent) {
  CLI::App* command =
      parent.add_subcommand("add", "Add a job: queue add --duration 4h -- moebius train CONFIG");
  auto a = std::make_shared<AddArguments>();
  command->add_option("command", a->command,
                      "The command, behind --; {workers} in it stands for their number");
  add_queue_option(*command, a->queue);
  command->add_option("--duration", a->duration, "Estimated run time on one worker: 45m, 4h, 1h30m, 2d")
      ->required();
  command->add_option("--slack", a->slack, "Longest wait; the deadline is now + duration + slack")
      ->capture_default_str();
  command->add_option("--deadline", a->deadline, "Time (UTC) to be done by, instead: 2031-05-17T09:00Z");
  command->add_option("--name", a->name, "Name for people (default: the program's)");
  command->add_option("--priority", a->priority, "Higher first, where not all fit")->capture_default_str();
  command->add_option("--width", a->width, "Places of the queue's capacity that one worker takes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--watts", a->watts, "Power of one worker, to estimate energy and emissions")
      ->check(CLI::Range(0.0, 1e9));
  command->add_option("--scaling", a->scaling, "CSV of speed and power by number of workers");
  command->add_option("--profile", a->profile, "Profile of that file");
  command->add_flag(
      "--can-pause", a->can_pause,
      "The command saves and ends on SIGTERM, and goes on when started again (moebius train does)");
  command->add_flag("--no-pause", a->no_pause, "Run a `moebius train` through, once started")
      ->excludes("--can-pause");
  command
      ->add_option("--pause-code", a->pause_code,
                   "Exit code of the command when it was paused and is not done")
      ->check(CLI::Range(0, 255))
      ->capture_default_str();
  command->add_option("--folder", a->folder, "Folder to run in (default: this one)");
  command->add_option("--times", a->times, "Add so many; {index} in the command stands for 0, 1, 2, ...")
      ->check(CLI::Range(int64_t{1}, int64_t{10000000}))
      ->capture_default_str();
  command->add_option("--now", a->now,
                      "Take this time (UTC) for now, for queues that replay a recorded grid");
  command->add_flag("--hold", a->hold, "Do not run it until `queue resume`");
  command->callback([a] { run_add(*a); });
}

}  // namespace

void add_queue_jobs_commands(CLI::App& parent) {
  add_add_command(parent);
  struct Look {
    std::string folder;
    int64_t id = 0;
    bool all = false, json = false;
  };
  auto look = std::make_shared<Look>();
  CLI::App* list = parent.add_subcommand("list", "List jobs that are not over");
  add_queue_option(*list, look->folder);
  list->add_flag("--all", look->all, "Also those that are");
  list->add_flag("--json", look->json, "Print JSON");
  list->callback([look] { print_list(look->folder, look->all, look->json); });
  CLI::App* show = parent.add_subcommand("show", "Show a job: plan, progress, history, where its output is");
  show->add_option("job", look->id, "Number of the job")->required();
  add_queue_option(*show, look->folder);
  show->add_flag("--json", look->json, "Print JSON");
  show->callback([look] { print_job(look->folder, look->id, look->json); });
  CLI::App* recover =
      parent.add_subcommand("recover", "Copy what can be read of a damaged database to a new file");
  add_queue_option(*recover, look->folder);
  recover->callback([look] { recover_queue(look->folder); });
  add_want_command(parent, "cancel", "Cancel jobs; one that runs is asked to save and end", Wanted::cancel);
  add_want_command(parent, "pause", "Keep jobs from running; one that runs is asked to save and end",
                   Wanted::hold);
  add_want_command(parent, "resume", "Let jobs run again", Wanted::run);
}

}  // namespace moebius::cli
