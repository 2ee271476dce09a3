#include "queue/recover.h"

#include <string>

#include "base/error.h"
#include "base/file.h"
#include "queue/database.h"
#include "queue/store.h"

namespace moebius::queue {
namespace {

namespace fs = std::filesystem;

// Rows of `table` in the order of `order`, up to the first that cannot be read; how many were written.
int64_t copy_rows(Database& from, Database& to, const std::string& table, const std::string& columns,
                  const std::string& order) {
  int64_t copied = 0;
  try {
    Statement select = from.prepare("SELECT " + columns + " FROM " + table + " ORDER BY " + order);
    const int count = select.columns();
    std::string places = "?";
    for (int i = 1; i < count; ++i) places += ", ?";
    Transaction transaction(to);
    Statement insert =
        to.prepare("INSERT OR IGNORE INTO " + table + " (" + columns + ") VALUES (" + places + ")");
    try {
      while (select.step()) {
        for (int i = 0; i < count; ++i) insert.bind_column(i + 1, select, i);
        insert.step();
        copied += to.changes();
        insert.reset();
      }
    } catch (const UserError&) {  // the damage; what was read before it stays
    }
    transaction.commit();
  } catch (const UserError&) {  // not even its begin can be read
  }
  return copied;
}

}  // namespace

Recovered recover_database(const fs::path& folder) {
  const fs::path damaged = folder / "queue.db";
  Recovered result{.file = folder / "queue.db.recovered"};
  if (!fs::exists(damaged)) throw_user_error("there is no database ", damaged.string(), " to recover");
  if (fs::exists(result.file))
    throw_user_error(result.file.string(), " exists already; move it away, or use it in place of ",
                     damaged.string());
  NewFolder scratch(folder / ".recover");
  // SQLite may write to what it opens: it gets a copy, with the log that belongs to it.
  fs::copy_file(damaged, scratch.path() / "damaged.db");
  if (fs::exists(folder / "queue.db-wal"))
    fs::copy_file(folder / "queue.db-wal", scratch.path() / "damaged.db-wal");
  {
    Store saved(scratch.path() / "saved", Database::Access::kCreate);
    Database& to = saved.database();
    to.execute("PRAGMA foreign_keys=OFF");  // history of jobs that are lost comes and goes
    try {
      Database from(scratch.path() / "damaged.db", Database::Access::kRead);
      for (const char* order : {"id", "id DESC"})
        result.jobs += copy_rows(from, to, "jobs", job_columns(), order);
      result.lines = copy_rows(from, to, "history", "job, time_s, attempt, what", "rowid");
    } catch (const UserError&) {  // not even opened
    }
    to.execute("DELETE FROM history WHERE job NOT IN (SELECT id FROM jobs)");
    if (result.jobs == 0)
      throw_user_error("no job can be read of ", damaged.string(),
                       "; put a copy of it back, it was left as it is");
    Statement last = to.prepare("SELECT max(id) - count(*) FROM jobs");
    result.complete = last.step() && last.whole(0) == 0;
    last.reset();
    to.execute("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  fs::rename(scratch.path() / "saved/queue.db", result.file);
  sync_folder(folder);
  return result;
}

}  // namespace moebius::queue
