// Saves what can be read of a damaged queue database.
#pragma once

#include <cstdint>
#include <filesystem>

namespace moebius::queue {

struct Recovered {
  std::filesystem::path file;   // the new database, beside the damaged one
  int64_t jobs = 0, lines = 0;  // of history
  bool complete = false;        // every job up to the last one that was added is there
};

// Copies all jobs that can be read of `folder`/queue.db to `folder`/queue.db.recovered, reading from both
// ends towards the damage. The damaged file is not written to. UserError when nothing can be read, or when
// the new file exists already.
Recovered recover_database(const std::filesystem::path& folder);

}  // namespace moebius::queue
