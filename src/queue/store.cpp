#include "queue/store.h"

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"

namespace moebius::queue {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kApplicationId = 0x4d6f6571;  // "Moeq"
constexpr int64_t kVersion = 1;

constexpr const char* kSchema = R"(
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL, command TEXT NOT NULL, folder TEXT NOT NULL,
  priority INTEGER NOT NULL, width INTEGER NOT NULL, length_s REAL NOT NULL, deadline_s REAL NOT NULL,
  can_pause INTEGER NOT NULL, pause_code INTEGER NOT NULL, watts REAL NOT NULL, scaling TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 6),
  wanted INTEGER NOT NULL CHECK (wanted BETWEEN 0 AND 2),
  added_s REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, lost_attempts INTEGER NOT NULL DEFAULT 0,
  workers INTEGER NOT NULL DEFAULT 0, state_since_s REAL NOT NULL, first_start_s REAL NOT NULL DEFAULT 0,
  finished_s REAL NOT NULL DEFAULT 0, work_done_s REAL NOT NULL DEFAULT 0,
  counted_until_s REAL NOT NULL DEFAULT 0, switch_left_s REAL NOT NULL DEFAULT 0,
  switches INTEGER NOT NULL DEFAULT 0, energy_kwh REAL NOT NULL DEFAULT 0, carbon_g REAL NOT NULL DEFAULT 0,
  exit_code INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '', plan TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX jobs_not_over ON jobs (id) WHERE state < 4;
CREATE TABLE history (
  job INTEGER NOT NULL REFERENCES jobs (id), time_s REAL NOT NULL, attempt INTEGER NOT NULL, what TEXT NOT NULL
) STRICT;
CREATE INDEX history_of_job ON history (job);
)";

constexpr const char* kColumns =
    "id, name, command, folder, priority, width, length_s, deadline_s, can_pause, pause_code, watts, "
    "scaling, "
    "state, wanted, added_s, attempts, lost_attempts, workers, state_since_s, first_start_s, finished_s, "
    "work_done_s, counted_until_s, switch_left_s, switches, energy_kwh, carbon_g, exit_code, note, plan";

StoredJob job_of(const Statement& row) {
  StoredJob job;
  int i = 0;
  job.id = row.whole(i++);
  job.name = row.text(i++);
  job.command = nlohmann::json::parse(row.text(i++)).get<std::vector<std::string>>();
  job.folder = row.text(i++);
  job.priority = row.whole(i++);
  job.width = row.whole(i++);
  job.length_s = row.number(i++);
  job.deadline_s = row.number(i++);
  job.can_pause = row.whole(i++) != 0;
  job.pause_code = static_cast<int>(row.whole(i++));
  job.watts = row.number(i++);
  job.scaling_text = row.text(i++);
  job.scaling = parse_scaling(job.scaling_text);
  job.state = static_cast<State>(row.whole(i++));
  job.wanted = static_cast<Wanted>(row.whole(i++));
  job.added_s = row.number(i++);
  job.attempts = row.whole(i++);
  job.lost_attempts = row.whole(i++);
  job.workers = static_cast<int>(row.whole(i++));
  job.state_since_s = row.number(i++);
  job.first_start_s = row.number(i++);
  job.finished_s = row.number(i++);
  job.work_done_s = row.number(i++);
  job.counted_until_s = row.number(i++);
  job.switch_left_s = row.number(i++);
  job.switches = row.whole(i++);
  job.energy_kwh = row.number(i++);
  job.carbon_g = row.number(i++);
  job.exit_code = static_cast<int>(row.whole(i++));
  job.note = row.text(i++);
  job.plan = row.text(i++);
  return job;
}

// Numbers of "1,1.9,3.6"; false when it is none.
bool parse_numbers(std::string_view text, std::vector<double>& numbers) {
  for (const char *at = text.data(), *end = at + text.size();;) {
    double value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || !(value >= 0) || value > 1e12) return false;
    numbers.push_back(value);
    if (next == end) return true;
    if (*next != ',') return false;
    at = next + 1;
  }
}

fs::path database_in(const fs::path& folder, Database::Access access) {
  const fs::path file = folder / "queue.db";
  std::error_code error;
  const bool missing = !fs::exists(file, error) || fs::file_size(file, error) == 0;
  if (access != Database::Access::kCreate) {
    if (missing)
      throw_user_error("there is no queue in ", folder.string(),
                       "; `moebius queue add` makes one, --queue names another folder");
    return file;
  }
  make_folders(folder / "jobs");
  if (missing && !fs::is_empty(folder / "jobs")) {
    throw_user_error("the queue's database ", file.string(), " is missing or empty, but ",
                     (folder / "jobs").string(),
                     " holds jobs; put a copy of the database back, or move jobs away to begin anew");
  }
  return file;
}

}  // namespace

const char* state_name(State state) {
  constexpr std::array<const char*, kNumStates> kNames = {"waiting", "starting", "running",  "stopping",
                                                          "done",    "failed",   "cancelled"};
  return kNames.at(static_cast<size_t>(state));
}

const char* job_columns() {
  return kColumns;
}

const char* wanted_name(Wanted wanted) {
  constexpr std::array<const char*, 3> kNames = {"run", "hold", "cancel"};
  return kNames.at(static_cast<size_t>(wanted));
}

ScalingProfile parse_scaling(std::string_view text) {
  if (text.empty()) return {};
  std::vector<double> speeds, powers;
  const size_t middle = text.find(';');
  if (middle == std::string_view::npos || !parse_numbers(text.substr(0, middle), speeds) ||
      !parse_numbers(text.substr(middle + 1), powers) || speeds.size() != powers.size() || !(speeds[0] > 0) ||
      !(powers[0] > 0)) {
    throw_user_error(
        "scaling '", text,
        "' is not SPEEDS;POWERS with a number for 1, 2, 3, ... workers in both, such as 1,1.9;1,2");
  }
  return {speeds, powers};
}

Store::Store(fs::path folder, Database::Access access)
    : folder_(std::move(folder)), database_(database_in(folder_, access), access) {
  const auto pragma = [&](std::string_view name) {
    Statement statement = database_.prepare(name);
    MOEBIUS_CHECK(statement.step());
    return statement.whole(0);
  };
  if (access == Database::Access::kCreate && pragma("PRAGMA user_version") == 0) {
    Transaction transaction(database_);
    if (pragma("PRAGMA user_version") == 0 && pragma("SELECT count(*) FROM sqlite_master") == 0) {
      database_.execute(kSchema);
      database_.execute(("PRAGMA application_id=" + std::to_string(kApplicationId)).c_str());
      database_.execute(("PRAGMA user_version=" + std::to_string(kVersion)).c_str());
    }
    transaction.commit();
  }
  if (pragma("PRAGMA application_id") != kApplicationId)
    throw_user_error("the database ", database_.file().string(),
                     " is not that of a queue; name another folder with --queue");
  const int64_t version = pragma("PRAGMA user_version");
  if (version != kVersion)
    throw_user_error("the queue's database ", database_.file().string(), " has version ", version,
                     "; this program knows version ", kVersion, ", use the one that made it");
}

void Store::add(StoredJob& job, double now_s) {
  std::vector<StoredJob> one = {job};
  add(one, now_s);
  job = one.front();
}

void Store::add(std::vector<StoredJob>& jobs, double now_s) {
  Transaction transaction(database_);
  Statement insert = database_.prepare(
      "INSERT INTO jobs (name, command, folder, priority, width, length_s, deadline_s, can_pause, "
      "pause_code, "
      "watts, scaling, state, wanted, added_s, state_since_s, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
      "0, ?, ?, ?, ?)");
  for (StoredJob& job : jobs) {
    insert.bind_all(job.name, nlohmann::json(job.command).dump(), job.folder, job.priority, job.width,
                    job.length_s, job.deadline_s, job.can_pause, job.pause_code, job.watts, job.scaling_text,
                    job.wanted, now_s, now_s, job.note);
    insert.step();
    insert.reset();
    job.id = database_.last_row();
    job.added_s = job.state_since_s = now_s;
    record(job.id, 0, now_s, "added");
  }
  transaction.commit();
}

std::optional<StoredJob> Store::find(int64_t id) {
  Statement select = database_.prepare(std::string("SELECT ") + kColumns + " FROM jobs WHERE id = ?");
  select.bind(1, id);
  if (!select.step()) return std::nullopt;
  return job_of(select);
}

std::vector<StoredJob> Store::unfinished() {
  Statement select =
      database_.prepare(std::string("SELECT ") + kColumns + " FROM jobs WHERE state < 4 ORDER BY id");
  std::vector<StoredJob> jobs;
  while (select.step()) jobs.push_back(job_of(select));
  return jobs;
}

void Store::list(bool over, const std::function<void(const JobRow&)>& row) {
  Statement select = database_.prepare(
      std::string("SELECT id, state, wanted, priority, workers, length_s, work_done_s, deadline_s, added_s, "
                  "finished_s, name, note FROM jobs ") +
      (over ? "" : "WHERE state < 4 ") + "ORDER BY id");
  while (select.step()) {
    row({select.whole(0), static_cast<State>(select.whole(1)), static_cast<Wanted>(select.whole(2)),
         select.whole(3), static_cast<int>(select.whole(4)), select.number(5), select.number(6),
         select.number(7), select.number(8), select.number(9), select.text(10), select.text(11)});
  }
}

std::vector<int64_t> Store::counts() {
  std::vector<int64_t> counts(kNumStates, 0);
  Statement select = database_.prepare("SELECT state, count(*) FROM jobs GROUP BY state");
  while (select.step()) counts.at(static_cast<size_t>(select.whole(0))) = select.whole(1);
  return counts;
}

std::vector<HistoryLine> Store::history(int64_t id) {
  Statement select =
      database_.prepare("SELECT time_s, attempt, what FROM history WHERE job = ? ORDER BY rowid");
  select.bind(1, id);
  std::vector<HistoryLine> lines;
  while (select.step()) lines.push_back({select.number(0), select.whole(1), std::string(select.text(2))});
  return lines;
}

std::optional<StoredJob> Store::want(int64_t id, Wanted wanted, double now_s) {
  Transaction transaction(database_);
  std::optional<StoredJob> job = find(id);
  if (job && !is_over(job->state) && job->wanted != Wanted::cancel && job->wanted != wanted) {
    job->wanted = wanted;
    const bool at_once = wanted == Wanted::cancel && job->state == State::waiting;
    if (at_once) {
      job->state = State::cancelled;
      job->state_since_s = job->finished_s = now_s;
    }
    Statement update = database_.prepare(
        "UPDATE jobs SET wanted = ?, state = ?, state_since_s = ?, finished_s = ? WHERE id = ?");
    update.bind_all(wanted, job->state, job->state_since_s, job->finished_s, id);
    update.step();
    record(id, job->attempts, now_s,
           at_once                    ? "cancelled while waiting"
           : wanted == Wanted::cancel ? "to be cancelled"
           : wanted == Wanted::hold   ? "held by its user"
                                      : "released by its user");
  }
  transaction.commit();
  return job;
}

bool Store::move(const StoredJob& job, State from, double now_s, std::string_view what) {
  Transaction transaction(database_);
  Statement update = database_.prepare(
      "UPDATE jobs SET state = ?2, attempts = ?3, lost_attempts = ?4, workers = ?5, state_since_s = ?6, "
      "first_start_s = ?7, finished_s = ?8, work_done_s = ?9, counted_until_s = ?10, switch_left_s = ?11, "
      "switches = ?12, energy_kwh = ?13, carbon_g = ?14, exit_code = ?15, note = ?16, plan = ?17 "
      "WHERE id = ?1 AND state = ?18 AND (?2 != 1 OR wanted = 0)");
  write_fields(update, job);
  update.bind(18, static_cast<int64_t>(from));
  update.step();
  if (database_.changes() == 0) return false;
  record(job.id, job.attempts, now_s, what);
  transaction.commit();
  return true;
}

void Store::save(const StoredJob& job) {
  Statement update = database_.prepare(
      "UPDATE jobs SET attempts = ?3, lost_attempts = ?4, workers = ?5, state_since_s = ?6, "
      "first_start_s = ?7, finished_s = ?8, work_done_s = ?9, counted_until_s = ?10, switch_left_s = ?11, "
      "switches = ?12, energy_kwh = ?13, carbon_g = ?14, exit_code = ?15, note = ?16, plan = ?17 "
      "WHERE id = ?1 AND state = ?2");
  write_fields(update, job);
  update.step();
}

void Store::write_fields(Statement& statement, const StoredJob& job) {
  statement.bind_all(job.id, job.state, job.attempts, job.lost_attempts, job.workers, job.state_since_s,
                     job.first_start_s, job.finished_s, job.work_done_s, job.counted_until_s,
                     job.switch_left_s, job.switches, job.energy_kwh, job.carbon_g, job.exit_code, job.note,
                     job.plan);
}

void Store::record(int64_t id, int64_t attempt, double now_s, std::string_view what) {
  Statement insert =
      database_.prepare("INSERT INTO history (job, time_s, attempt, what) VALUES (?, ?, ?, ?)");
  insert.bind_all(id, now_s, attempt, what);
  insert.step();
}

}  // namespace moebius::queue
