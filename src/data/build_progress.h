// How the building of a corpus is shown: a line that is redrawn on a terminal, otherwise a log line now and
// then.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace moebius::data {

// Called while a corpus is built: its text file, bytes done, bytes to do. At least once at the end of each.
using BuildProgress = std::function<void(const std::string& file, int64_t done_bytes, int64_t total_bytes)>;

// Writes to stderr: on a terminal ten times a second, erased at the end; elsewhere every ten seconds. Ends
// each file that took longer than a second with one log line that says how fast it went.
BuildProgress show_build_progress();

}  // namespace moebius::data
