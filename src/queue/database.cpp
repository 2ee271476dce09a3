#include "queue/database.h"

#include <sqlite3.h>

#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "queue/fault_point.h"

namespace moebius::queue {
namespace {

constexpr int kBusyMs = 20000;  // other writers are done in milliseconds

}  // namespace

Statement::Statement(Statement&& other) noexcept
    : database_(other.database_), statement_(std::exchange(other.statement_, nullptr)) {}

Statement::~Statement() {
  sqlite3_finalize(statement_);
}

Statement& Statement::bind(int index, int64_t value) {
  const int code = sqlite3_bind_int64(statement_, index, value);
  if (code != SQLITE_OK) database_->fail(code);
  return *this;
}

Statement& Statement::bind(int index, double value) {
  const int code = sqlite3_bind_double(statement_, index, value);
  if (code != SQLITE_OK) database_->fail(code);
  return *this;
}

Statement& Statement::bind(int index, std::string_view value) {
  const int code =
      sqlite3_bind_text64(statement_, index, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) database_->fail(code);
  return *this;
}

void Statement::bind_column(int index, const Statement& row, int column) {
  const int code = sqlite3_bind_value(statement_, index, sqlite3_column_value(row.statement_, column));
  if (code != SQLITE_OK) database_->fail(code);
}

int Statement::columns() const {
  return sqlite3_column_count(statement_);
}

bool Statement::step() {
  fault_point();
  const int code = sqlite3_step(statement_);
  fault_point();
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) database_->fail(code);
  return false;
}

void Statement::reset() {
  sqlite3_reset(statement_);  // repeats the error of step(), which was thrown already
}

int64_t Statement::whole(int column) const {
  return sqlite3_column_int64(statement_, column);
}

double Statement::number(int column) const {
  return sqlite3_column_double(statement_, column);
}

std::string_view Statement::text(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return text == nullptr
             ? std::string_view()
             : std::string_view(text, static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
}

Database::Database(std::filesystem::path file, Access access) : file_(std::move(file)) {
  // Reading a database with a write-ahead log may need to write beside it, so readers open it for writing.
  int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_READWRITE;
  if (access == Access::kCreate) flags |= SQLITE_OPEN_CREATE;
  int code = sqlite3_open_v2(file_.c_str(), &handle_, flags, nullptr);
  try {
    if (code != SQLITE_OK) fail(code);
    sqlite3_extended_result_codes(handle_, 0);
    sqlite3_busy_timeout(handle_, kBusyMs);
    // Readers never wait for the writer; a committed change survives a power cut.
    execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON");
    if (access == Access::kRead) execute("PRAGMA query_only=ON");
  } catch (...) {
    sqlite3_close(handle_);
    throw;
  }
}

Database::~Database() {
  data_version_.reset();
  sqlite3_close_v2(handle_);
}

void Database::execute(const char* sql) {
  fault_point();
  const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  fault_point();
  if (code != SQLITE_OK) fail(code);
}

Statement Database::prepare(std::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v2(handle_, sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) fail(code);
  return {*this, statement};
}

int64_t Database::last_row() const {
  return sqlite3_last_insert_rowid(handle_);
}

int64_t Database::changes() const {
  return sqlite3_changes64(handle_);
}

int64_t Database::data_version() {
  if (!data_version_) data_version_ = std::make_unique<Statement>(prepare("PRAGMA data_version"));
  data_version_->reset();
  MOEBIUS_CHECK(data_version_->step());
  const int64_t version = data_version_->whole(0);
  data_version_->reset();
  return version;
}

void Database::check_whole() {
  Statement check = prepare("PRAGMA quick_check(1)");
  MOEBIUS_CHECK(check.step());
  const std::string found(check.text(0));
  if (found != "ok") {
    throw_user_error("the queue's database ", file_.string(), " is damaged (", found,
                     "); it was left as it is. `moebius queue recover` copies what can be read to a new one");
  }
}

void Database::fail(int code) const {
  const std::string what =
      handle_ == nullptr ? std::string(sqlite3_errstr(code)) : std::string(sqlite3_errmsg(handle_));
  const std::string file = file_.string();
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      throw_user_error(
          "the queue's database ", file, " is damaged (", what,
          "); it was left as it is. `moebius queue recover` copies what can be read to a new one");
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      throw_user_error("the queue's database ", file, " has been locked by another process for ",
                       kBusyMs / 1000, " s; find it with `fuser ", file, "`");
    case SQLITE_FULL:
      throw_user_error("no space left for the queue's database ", file, "; free some");
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      throw_user_error("the queue's database ", file, " cannot be written (", what,
                       "); it belongs to another user, or its folder is read-only");
    case SQLITE_CANTOPEN:
      throw_user_error("the queue's database ", file, " cannot be opened (", what,
                       "); `moebius queue add` makes one, --queue names another folder");
    case SQLITE_IOERR:
      throw_user_error("the queue's database ", file, ": ", what, "; look at the disk");
    default:
      MOEBIUS_CHECK(false, "SQLite error ", code, " with ", file, ": ", what);
  }
  std::abort();
}

Transaction::Transaction(Database& database) : database_(database) {
  database_.execute("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
  if (!open_) return;
  try {
    database_.execute("ROLLBACK");
  } catch (...) {  // an error inside has rolled back already
  }
}

void Transaction::commit() {
  database_.execute("COMMIT");
  open_ = false;
}

}  // namespace moebius::queue
