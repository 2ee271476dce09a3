// Recorded carbon intensity of a grid: one value per step of equal length, without gaps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moebius::energy::carbon {

// Which emissions a figure counts: those of the whole life of a plant (building, fuel, dismantling) or those
// of its chimney alone. Every output names it.
enum class Scope { kLifecycle, kDirect };
const char* scope_name(Scope scope);  // "lifecycle", "direct"

struct Trace {
  std::string zone;    // from the file's name: "DE" of DE.csv.gz
  std::string signal;  // "lifecycle average", "direct average" or, where the file does not say, "as recorded"
  int64_t start_unix_s = 0;     // begin of the first step, UTC
  int64_t step_s = 3600;        // length of a step; divides a day
  std::vector<double> values;   // gCO2eq/kWh, constant inside a step
  int64_t estimated_steps = 0;  // marked by the provider as estimated
  int64_t filled_steps = 0;     // filled here because the caller asked for it

  // Index of the step that begins at 00:00 UTC on 1 January of `year`; UserError when the trace does not hold
  // it.
  int64_t index_of_year(int year) const;
  std::string first_day() const;  // "2021-01-01"
  std::string last_day() const;
};

struct TraceOptions {
  Scope scope = Scope::kLifecycle;
  // Gaps of at most so many missing steps are filled with the line between their neighbours; 0 refuses every
  // gap.
  int64_t max_gap_steps = 0;
};

// CSV, plain or .gz, of one of two forms; further columns are ignored:
//   utc_iso8601, lifecycle_g_per_kwh, direct_g_per_kwh [, estimated]   times like 2021-01-01T00:00:00Z
//   time_as_recorded, g_per_kwh                                        times like 2020-01-01T00:30:00, taken
//   as UTC
// Rows rise by one step (300, 900, 1800 or 3600 s, that of the first two rows), values lie in (0, 5000].
// UserError naming file, line, column and value otherwise: a trace with a hole or a wrong value would give a
// wrong sum silently.
Trace read_trace(const std::filesystem::path& file, const TraceOptions& options = {});

}  // namespace moebius::energy::carbon
