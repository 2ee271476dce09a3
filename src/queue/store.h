// The queue on disk: jobs, and what happened to them, in a database that several processes share.
//
// Each change of state is one transaction that also writes the line of history, so a kill at any instant
// leaves the job before or after it. Only the process that holds the dispatcher's lock moves jobs between
// states (but for cancelling a waiting one); others add jobs and say what they want.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "queue/database.h"
#include "queue/stored_job.h"

namespace moebius::queue {

// Columns of a job's row, comma-separated, id first.
const char* job_columns();

struct HistoryLine {
  double time_s = 0;
  int64_t attempt = 0;
  std::string what;
};

// What a list shows of a job.
struct JobRow {
  int64_t id;
  State state;
  Wanted wanted;
  int64_t priority;
  int workers;
  double length_s, work_done_s, deadline_s, added_s, finished_s;
  std::string_view name, note;  // valid inside the callback
};

class Store {
 public:
  // `folder` holds queue.db and jobs/ID/ with what each job prints. kCreate makes it; it refuses a folder
  // whose database has gone while jobs are left. UserError for a database of something else, of a later
  // version, or damaged.
  Store(std::filesystem::path folder, Database::Access access);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path folder_of(int64_t id) const { return folder_ / "jobs" / std::to_string(id); }
  Database& database() { return database_; }

  // Fills id and added_s.
  void add(StoredJob& job, double now_s);
  void add(std::vector<StoredJob>& jobs, double now_s);  // all or none
  std::optional<StoredJob> find(int64_t id);
  std::vector<StoredJob> unfinished();
  // In order of id; over: also those that are.
  void list(bool over, const std::function<void(const JobRow&)>& row);
  std::vector<int64_t> counts();  // by state
  std::vector<HistoryLine> history(int64_t id);

  // What the user wants of a job; a waiting one is cancelled at once. Returns the job as it is then, nothing
  // when there is none. A job that is over stays as it is.
  std::optional<StoredJob> want(int64_t id, Wanted wanted, double now_s);

  // The dispatcher's moves. Each writes the job's fields that the dispatcher owns if the row is still in
  // state `from` (and, for starting, wanted), and says whether it was.
  bool move(const StoredJob& job, State from, double now_s, std::string_view what);
  // The same fields without a change of state or history.
  void save(const StoredJob& job);

 private:
  void write_fields(Statement& statement, const StoredJob& job);
  void record(int64_t id, int64_t attempt, double now_s, std::string_view what);

  std::filesystem::path folder_;
  Database database_;
};

}  // namespace moebius::queue
