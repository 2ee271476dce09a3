// SQLite for the queue: one file, write-ahead log, full durability. What goes wrong with the file is a
// UserError that names it, the reason and the way out; a damaged file is refused and never written to. One
// thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

struct sqlite3;
struct sqlite3_stmt;

namespace moebius::queue {

class Database;

class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  // Parameters are numbered from 1.
  Statement& bind(int index, int64_t value);
  Statement& bind(int index, double value);
  Statement& bind(int index, std::string_view value);
  // All parameters in order: numbers, enumerators, flags and texts.
  template <class... Values>
  Statement& bind_all(const Values&... values) {
    int index = 0;
    (bind_value(++index, values), ...);
    return *this;
  }
  // The next row; false at the end.
  bool step();
  // Ready to be bound and run again.
  void reset();

  // The value of a column of another statement's row, as it is.
  void bind_column(int index, const Statement& row, int column);

  // Columns are numbered from 0.
  int columns() const;
  int64_t whole(int column) const;
  double number(int column) const;
  std::string_view text(int column) const;  // valid until the next step

 private:
  friend class Database;
  Statement(Database& database, sqlite3_stmt* statement) : database_(&database), statement_(statement) {}
  template <class Value>
  void bind_value(int index, const Value& value) {
    if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
      bind(index, std::string_view(value));
    } else if constexpr (std::is_floating_point_v<Value>) {
      bind(index, static_cast<double>(value));
    } else {
      bind(index, static_cast<int64_t>(value));
    }
  }
  Database* database_;
  sqlite3_stmt* statement_;
};

class Database {
 public:
  enum class Access {
    kRead,    // the file must be there
    kWrite,   // the file must be there
    kCreate,  // made when missing
  };
  Database(std::filesystem::path file, Access access);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  void execute(const char* sql);
  Statement prepare(std::string_view sql);
  int64_t last_row() const;
  int64_t changes() const;  // rows that the last statement changed
  // Changes when another connection has written.
  int64_t data_version();
  // Reads the whole file and throws when it is damaged.
  void check_whole();
  const std::filesystem::path& file() const { return file_; }

 private:
  friend class Statement;
  [[noreturn]] void fail(int code) const;

  std::filesystem::path file_;
  sqlite3* handle_ = nullptr;
  std::unique_ptr<Statement> data_version_;
};

// Writes of its lifetime happen together or, without commit(), not at all. Waits for other writers.
class Transaction {
 public:
  explicit Transaction(Database& database);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit();

 private:
  Database& database_;
  bool open_ = true;
};

}  // namespace moebius::queue
