#include "energy/carbon/trace.h"

#include <charconv>
#include <chrono>
#include <optional>
#include <string_view>

#include "base/clock.h"
#include "base/csv.h"
#include "base/error.h"

namespace moebius::energy::carbon {
namespace {

constexpr double kMaxGramsPerKwh = 5000;
// Smallest value that is believed: 0 stands for "no reading" in every source known.
constexpr double kMinGramsPerKwh = 1e-3;

std::optional<int> digits(std::string_view text, size_t at, size_t count) {
  int value = 0;
  const char* begin = text.data() + at;
  const auto [end, error] = std::from_chars(begin, begin + count, value);
  if (error != std::errc() || end != begin + count || *begin == '-') return std::nullopt;
  return value;
}

// Seconds since 1970 of 2021-01-01T00:00:00, with a Z where `utc`.
std::optional<int64_t> parse_time(std::string_view text, bool utc) {
  if (utc) {
    if (text.empty() || text.back() != 'Z') return std::nullopt;
    text.remove_suffix(1);
  }
  if (text.size() != 19 || text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' ||
      text[16] != ':') {
    return std::nullopt;
  }
  const auto year = digits(text, 0, 4), month = digits(text, 5, 2), day = digits(text, 8, 2),
             hour = digits(text, 11, 2), minute = digits(text, 14, 2), second = digits(text, 17, 2);
  if (!year || !month || !day || !hour || !minute || !second || *hour > 23 || *minute > 59 || *second > 59) {
    return std::nullopt;
  }
  const std::chrono::year_month_day date{std::chrono::year{*year}, std::chrono::month(*month),
                                         std::chrono::day(*day)};
  if (!date.ok()) return std::nullopt;
  const auto days = std::chrono::sys_days{date}.time_since_epoch().count();
  return int64_t{days} * 86400 + *hour * 3600 + *minute * 60 + *second;
}

std::string zone_of(const std::filesystem::path& file) {
  std::string name = file.filename().string();
  for (const std::string_view ending : {".gz", ".csv"}) {
    if (name.size() > ending.size() && name.ends_with(ending)) name.resize(name.size() - ending.size());
  }
  return name;
}

class TraceReader {
 public:
  TraceReader(const std::filesystem::path& file, const TraceOptions& options)
      : table_(file, "carbon trace"), options_(options) {
    if (const auto column = table_.find_column("time_as_recorded")) {
      time_ = *column;
      value_ = table_.column("g_per_kwh");
      utc_ = false;
      trace_.signal = "as recorded";
    } else {
      time_ = table_.column("utc_iso8601");
      value_ = table_.column(concat(scope_name(options.scope), "_g_per_kwh"));
      estimated_ = table_.find_column("estimated");
      trace_.signal = concat(scope_name(options.scope), " average");
    }
    trace_.zone = zone_of(file);
  }

  Trace read() {
    while (table_.next()) row();
    if (trace_.values.size() < 2) {
      throw_user_error(table_.name(), ": holds ", trace_.values.size(),
                       " values; two at least are needed to know the length of a step");
    }
    return std::move(trace_);
  }

 private:
  void row() {
    const auto time = parse_time(table_.text(time_), utc_);
    if (!time) {
      table_.refuse(
          time_, utc_ ? "is not a time like 2021-01-01T00:00:00Z" : "is not a time like 2020-01-01T00:30:00");
    }
    const double value = table_.number(value_, kMinGramsPerKwh, kMaxGramsPerKwh);
    if (trace_.values.empty()) {
      trace_.start_unix_s = *time;
    } else {
      follow(*time, value);
    }
    trace_.values.push_back(value);
    if (estimated_) trace_.estimated_steps += table_.whole(*estimated_, 0, 1);
    last_ = *time;
  }

  // The row's time against that of the row before.
  void follow(int64_t time, double value) {
    const int64_t apart = time - last_;
    if (apart <= 0) {
      table_.refuse(time_,
                    concat(apart == 0 ? "repeats" : "comes before", " the time of the row above it, ",
                           iso_time(static_cast<double>(last_)), "; sort the rows and keep one per step"));
    }
    if (trace_.values.size() == 1) {
      if (apart != 300 && apart != 900 && apart != 1800 && apart != 3600) {
        table_.refuse(time_, concat("is ", apart,
                                    " s after the row above it; steps of 300, 900, 1800 or 3600 s are read"));
      }
      trace_.step_s = apart;
      return;
    }
    if (apart == trace_.step_s) return;
    if (apart % trace_.step_s != 0) {
      table_.refuse(time_, concat("is ", apart, " s after the row above it, in a trace with steps of ",
                                  trace_.step_s, " s"));
    }
    const int64_t missing = apart / trace_.step_s - 1;
    if (missing > options_.max_gap_steps) {
      table_.refuse(time_, concat("comes after a gap of ", missing, missing == 1 ? " step" : " steps",
                                  " behind ", iso_time(static_cast<double>(last_)),
                                  "; add the missing rows, or allow filling (--fill-gaps ", missing, ")"));
    }
    const double before = trace_.values.back();
    for (int64_t i = 1; i <= missing; ++i) {
      trace_.values.push_back(before +
                              (value - before) * static_cast<double>(i) / static_cast<double>(missing + 1));
    }
    trace_.filled_steps += missing;
  }

  CsvTable table_;
  TraceOptions options_;
  size_t time_ = 0, value_ = 0;
  std::optional<size_t> estimated_;
  bool utc_ = true;
  int64_t last_ = 0;
  Trace trace_;
};

}  // namespace

const char* scope_name(Scope scope) {
  return scope == Scope::kLifecycle ? "lifecycle" : "direct";
}

int64_t Trace::index_of_year(int year) const {
  const std::chrono::sys_days day{std::chrono::year{year} / std::chrono::January / 1};
  const int64_t begin = int64_t{day.time_since_epoch().count()} * 86400;
  const int64_t index = (begin - start_unix_s) / step_s;
  if (begin < start_unix_s || (begin - start_unix_s) % step_s != 0 ||
      index >= static_cast<int64_t>(values.size())) {
    throw_user_error("year ", year, " does not begin in the carbon trace of ", zone, ", which runs from ",
                     first_day(), " to ", last_day(), "; choose another --year or another file");
  }
  return index;
}

std::string Trace::first_day() const {
  return iso_time(static_cast<double>(start_unix_s)).substr(0, 10);
}

std::string Trace::last_day() const {
  return iso_time(static_cast<double>(start_unix_s + (static_cast<int64_t>(values.size()) - 1) * step_s))
      .substr(0, 10);
}

Trace read_trace(const std::filesystem::path& file, const TraceOptions& options) {
  return TraceReader(file, options).read();
}

}  // namespace moebius::energy::carbon
